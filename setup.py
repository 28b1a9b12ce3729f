"""Builds rnnkit. Pure Python today: the native kernels of csrc/ will be built from here."""

from setuptools import setup

setup()
