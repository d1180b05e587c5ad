"""Ways into npbench from other code."""
