"""Networks as ONNX models: one step with its states, and the whole sequence."""
