"""Installs rlplay; everything it has to say stands in setup.cfg."""

from setuptools import setup

setup()
