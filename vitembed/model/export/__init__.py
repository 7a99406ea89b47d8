"""An encoder for other libraries: timm, Hugging Face transformers, ONNX. One format a file, each with a card."""
