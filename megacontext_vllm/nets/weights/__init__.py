"""Weights that come with the package: ``NAME.safetensors`` with its card ``NAME.json``, found by model fingerprint.

A package only so that its files are installed.
"""
