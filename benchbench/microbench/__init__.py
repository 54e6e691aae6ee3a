"""The operations that a calibration times, each over a grid of sizes."""
