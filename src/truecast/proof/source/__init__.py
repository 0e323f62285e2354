"""The source once more, read without the exporter's reader: by its own loader, or by the definition of its format.

`loading` has transformers load the model; `definitions` decodes what a library quantized, one small file for each
family of formats, written from the formats' definitions alone.
"""
