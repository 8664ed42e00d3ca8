"""Runs files of ``convnext-dense export`` on pictures. Needs numpy, onnxruntime and Pillow only.

    python -m convnext_dense.runtime model.onnx FOLDER --out predictions

Nothing in this folder imports from outside of it: copied alone, as a folder ``runtime``, it runs
with ``python -m runtime``. In Python::

    from convnext_dense.runtime.model import Model
    labels = Model('model.onnx')(image)
"""
