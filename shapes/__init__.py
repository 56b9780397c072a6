"""The embedded models: the scenes that they draw, and the judge that scores their images.

`vqcompress.embedded` has the table of the models. Their training, in ``train/``, is not part of the wheel.
"""
