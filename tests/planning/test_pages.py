import yaml

from medvol.planning.pages import values_text
from medvol.planning.request import Draft


def test_a_line_break_in_a_name_ends_no_comment():
    draft = Draft()
    draft.set("seed", 0, "liver\nseed: 7")
    text = values_text(draft, "Mine\nseed: 8", ["one\nseed: 9"], {"title": "Mine"})
    assert yaml.safe_load(text) == {"seed": 0, "meta": {"title": "Mine"}}
