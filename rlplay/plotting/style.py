"""Colours that the pictures share."""

__all__ = ["BLUE", "GREY", "LIGHT_BLUE", "RED"]

LIGHT_BLUE, BLUE, RED, GREY = "#7fa3cf", "#1f4e8c", "#c8553d", "#666666"
