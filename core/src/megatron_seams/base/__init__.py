"""What knows neither Megatron nor seams: typed reading, versions, distributions, files."""
