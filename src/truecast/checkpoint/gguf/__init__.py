"""GGUF: llama.cpp's files, read as the Hugging Face checkpoint that they were converted from.

Data flow: file or files (`container`, `parts`) → checked metadata (`metadata`) → config.json (`architectures`,
`config`), names (`names`), decoded rows and encodings (`opening`, `encodings`), tokenizer files (`tokenizer`).
"""
