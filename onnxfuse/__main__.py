"""python -m onnxfuse"""

from .cli import entry

entry()
