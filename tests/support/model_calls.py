"""Calls of functions as each family of models writes them."""

from typing import Any

FUNCTIONS: dict[str, Any] = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "get_time": {"type": "object", "properties": {}},
    "note": {"type": "object", "properties": {"text": {"type": "string"}, "tags": {"type": "array"}}},
}
PARIS = ("get_weather", {"city": "Paris", "days": 3})
TIME = ("get_time", {})
Expected = list[str | tuple[str, dict[str, Any]]]

#: (family, what a model writes, what it says and calls)
GOLDEN: list[tuple[str, str, Expected]] = [
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
        [PARIS],
    ),
    (
        "hermes",
        'I look it up.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
        '\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
        ["I look it up.", PARIS, TIME],
    ),
    ("hermes", '<tool_call>{"arguments": {"city": "Paris", "days": 3}, "name": "get_weather"}</tool_call>', [PARIS]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}', [PARIS]),
    ("hermes", '<tool_call>\n{"name": "get_time"}\n</tool_call>', [TIME]),
    (
        "hermes",
        '<tool_call>{"name": "note", "arguments": {"text": "a\nb \\" </tool_call> {", "tags": [1, [2.5e3], null]}}'
        "</tool_call> Done.",
        [("note", {"text": 'a\nb " </tool_call> {', "tags": [1, [2500.0], None]}), " Done."],
    ),
    (
        "qwen3_coder",
        "Sure.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
        ["Sure.", PARIS, TIME],
    ),
    (
        "qwen3_coder",
        '<function=note>\n<parameter=text>\n  def f():\n    return "<b>"\n\n</parameter>\n<parameter=tags>'
        "\n['a', True]\n</parameter>\n</function>",
        [("note", {"text": '  def f():\n    return "<b>"\n', "tags": ["a", True]})],
    ),
    (
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>",
        [PARIS],
    ),
    ("glm45", "Now.<tool_call>get_time</tool_call><tool_call>get_time\n</tool_call>", ["Now.", TIME, TIME]),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; {"name": "get_time", "parameters": {}}',
        [PARIS, TIME],
    ),
    (
        "llama3_json",
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
        [PARIS],
    ),
    ("llama3_json", 'As JSON: {"name": "Ada", "born": 1815}.', ['As JSON: {"name": "Ada", "born": 1815}.']),
    ("pythonic", '[get_weather(city="Paris", days=3), get_time()]', [PARIS, TIME]),
    ("pythonic", "<|python_start|>[get_weather(city='Paris', days=3)]<|python_end|>", [PARIS]),
    ("pythonic", '```tool_code\nget_weather(city="Paris", days=3)\nget_time()\n```', [PARIS, TIME]),
    (
        "pythonic",
        "[note(text='it\\'s [1), \"x\"', tags=[{'a': (1, -2)}, None, true])]",
        [("note", {"text": 'it\'s [1), "x"', "tags": [{"a": [1, -2]}, None, True]})],
    ),
    ("pythonic", "See [1] and [f(x)].", ["See [1] and [f(x)]."]),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, '
        '{"name": "get_time", "arguments": {}}]',
        [PARIS, TIME],
    ),
    (
        "mistral",
        'Let me see.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]get_time[ARGS]{}',
        ["Let me see.", PARIS, TIME],
    ),
    ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Paris", "days": 3}', [PARIS]),
    ("mistral", '[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}', [PARIS]),
    (
        "internlm",
        'I ask.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'
        "<|action_end|>",
        ["I ask.", PARIS],
    ),
    (
        "gemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>",
        [PARIS],
    ),
    (
        "gemma",
        '<|tool_call>call:note{text:<|"|>a "b", {c}<|"|>,tags:[<|"|>x<|"|>,1.5,true,{k:null}]}<tool_call|>'
        "<|tool_call>call:get_time{}<tool_call|>",
        [("note", {"text": 'a "b", {c}', "tags": ["x", 1.5, True, {"k": None}]}), TIME],
    ),
    (
        "phi4_mini",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]<|/tool_call|>',
        [PARIS],
    ),
    (
        "phi4_mini",
        'functools[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, {"name": "get_time", '
        '"arguments": {}}]',
        [PARIS, TIME],
    ),
    (
        "deepseek_v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n'
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [PARIS, TIME],
    ),
    (
        "deepseek_v31",
        'I check.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}'
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ["I check.", PARIS, TIME],
    ),
    (
        "deepseek_v32",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">'
        'Paris</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n"
        '<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        [PARIS, TIME],
    ),
    (
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.get_time:1'
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        [PARIS, TIME],
    ),
    (
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
        [PARIS],
    ),
    (
        "granite",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]',
        [PARIS],
    ),
    (
        "cohere",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris", '
        '"days": 3}}\n]<|END_ACTION|>',
        [PARIS],
    ),
    (
        "hunyuan",
        '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]</tool_calls>',
        [PARIS],
    ),
    ("lfm2", '<|tool_call_start|>[get_weather(city="Paris", days=3)]<|tool_call_end|>Wait.', [PARIS, "Wait."]),
    ("olmo3", '<function_calls>get_weather(city="Paris", days=3)\nget_time()</function_calls>', [PARIS, TIME]),
]
