"""System 2, one module a family: vision-language models of transformers behind one interface.

`vla.backbone` builds one by its name; nothing here knows what the tokens are used for.
"""
