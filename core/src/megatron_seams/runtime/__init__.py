"""The half of megatron-seams that imports torch and Megatron: from a plan to a model that runs.

Nothing is imported here: the planner may name this package without paying for torch.
"""
