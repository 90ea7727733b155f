"""Measuring what a model makes; inference never imports this package."""
