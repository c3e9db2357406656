"""ONNX for onnxruntime-genai: plan, build, verify."""
