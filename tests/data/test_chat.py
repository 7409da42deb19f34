import pytest
from conftest import byte_tokenizer

from hope_eval.data import chat
from hope_eval.data.vocabulary import Vocabulary
from hope_eval.errors import OptionError

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system turn') }}", "fails: .*no system turn"),
        ("{% for", "fails: TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ({"tool_use": "{{ messages }}"}, "fails"),
        ("hello", "leaves out the user's words"),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", "writes BOS twice"),
        (ENDLESS, "does not end within"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(template, message, monkeypatch):
    monkeypatch.setattr(chat, "PATIENCE", 0.2)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(OptionError, match=message) as caught:
        Vocabulary(tokenizer, None, chat=True)
    assert "--plain" in caught.value.hint


def test_a_template_writes_turns():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<model>"
    assert chat.rendered(tokenizer, [{"role": "user", "content": "hello"}]) == "<user>hello<model>"
