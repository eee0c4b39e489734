"""Layers held to what another network answers in their place, one after another, on calibration data."""
