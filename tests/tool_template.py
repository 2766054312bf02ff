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
# The form that ChatML models with tools share: tools in the system turn, results in one turn of the user's, and marks
# that are tokens of their own, but not control tokens.
CHATML = (
    "{%- if tools %}"
    "{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{{ 'You may call:\\n<tools>' }}{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\\n</tools><|im_end|>\\n' }}"
    "{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\nResult: ' + message.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{%- elif message.role == 'assistant' and message.tool_calls %}"
    "{{ '<|im_start|>assistant' }}{% if message.content %}{{ '\\n' + message.content }}{% endif %}"
    "{%- for call in message.tool_calls %}"
    '{{ \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}"
    "{%- endfor %}{{ '<|im_end|>\\n' }}"
    "{%- elif message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"marked": MARKED, "written": WRITTEN, "bare": BARE, "chatml": CHATML}


def tool_tokenizer(template: str = MARKED) -> Tokenizer:
    """A byte-level tokenizer with that template, whose control tokens are the trained ones and, if used, the marks."""
    text = 'hello world, 你好世界 {"name": "add", "arguments": {"a": 1}} [call] [done] ' * 20
    trained = Tokenizer.train([text], TokenizerSettings(vocab_size=320))
    marks = [mark for mark in ("<|call|>", "<|done|>", "<|im_start|>", "<|im_end|>") if mark in template]
    backend = trained.backend
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    if template == CHATML:
        backend.add_tokens([AddedToken(mark, special=False) for mark in ("<tool_call>", "</tool_call>")])
    eos_token = "<|im_end|>" if template == CHATML else trained.eos_token
    return Tokenizer.from_parts(
        backend, chat_template=template, bos_token=trained.bos_token, eos_token=eos_token, prompt_prefix_ids=[]
    )
