"""How a written folder is used: the text that a model card shows, run by a test as it stands."""

from __future__ import annotations

_GENAI = """\
```python
# pip install onnxruntime-genai
import onnxruntime_genai as og

model = og.Model("{folder}")
tokenizer = og.Tokenizer(model)
words = tokenizer.create_stream()
params = og.GeneratorParams(model)
params.set_search_options(max_length={length}, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("{prompt}"))
while not generator.is_done():
    generator.generate_next_token()
    print(words.decode(generator.get_next_tokens()[0]), end="", flush=True)
```
"""
_OPTIMUM = """\
```python
# pip install optimum-onnx onnxruntime
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

model = ORTModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer("{prompt}", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_length={length}, do_sample=False)[0]))
```
"""
PROMPT = "The capital of France is"


def usage(folder: str, *, target: str, length: int = 128) -> str:
    """A fenced Python block that opens `folder` and continues a prompt up to `length` tokens.

    `target` is the artifact's ("onnx-int4", "onnx-optimum-int8"): it decides on the runtime.
    """
    text = _OPTIMUM if target.startswith("onnx-optimum") else _GENAI
    return text.format(folder=folder, prompt=PROMPT, length=length)
