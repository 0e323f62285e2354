"""CALIBRATE: text of the user's, and the libraries that quantize a model by what it makes of such text."""
