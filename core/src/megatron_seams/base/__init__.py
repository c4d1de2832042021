"""Typed TOML, versions, distributions, files and JSON; nothing here knows Megatron or seams."""
