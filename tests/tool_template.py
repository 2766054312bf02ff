"""A chat template that has a place for tools, and tokenizers that use it: tests need no published model."""

from __future__ import annotations

from tokenizers import AddedToken

from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

# The marks around a call are control tokens here: they add nothing to the text that the engine gives.
MARKED = (
    "{%- if tools %}{{ '<|system|>Tools: ' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|end|>' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}{{ '<|user|>Result: ' + message.content + '<|end|>' }}"
    "{%- else %}{{ '<|' + message.role + '|>' + message.content }}"
    "{%- for call in message.tool_calls %}"
    '{{ \'<|call|>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\\n<|done|>' }}"
    "{%- endfor %}{{ '<|end|>' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Plain text marks them here.
WRITTEN = MARKED.replace("<|call|>", "[call]").replace("<|done|>", "[done]")
# And here nothing does, and the arguments have another name.
BARE = MARKED.replace("<|call|>\\n", "").replace("\\n<|done|>", "").replace('"arguments"', '"parameters"')
TEMPLATES = {"marked": MARKED, "written": WRITTEN, "bare": BARE}


def tool_tokenizer(template: str = MARKED) -> Tokenizer:
    """A byte-level tokenizer with that template, whose control tokens are the trained ones and, if used, the marks."""
    text = 'hello world, 你好世界 {"name": "add", "arguments": {"a": 1}} [call] [done] ' * 20
    trained = Tokenizer.train([text], TokenizerSettings(vocab_size=320))
    marks = [mark for mark in ("<|call|>", "<|done|>") if mark in template]
    backend = trained.backend
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return Tokenizer.from_parts(
        backend, chat_template=template, bos_token=trained.bos_token, eos_token=trained.eos_token, prompt_prefix_ids=[]
    )
