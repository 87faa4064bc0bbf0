import xml.etree.ElementTree as ET
from pathlib import Path

LOGO = Path(__file__).parents[2] / "frontend/logo.svg"


def test_the_name_in_the_logo_is_not_cut_off_whatever_font_the_reader_has() -> None:
    picture = ET.parse(LOGO).getroot()
    name = next(picture.iter("{http://www.w3.org/2000/svg}text"))
    assert float(name.attrib["x"]) + float(name.attrib["textLength"]) <= float(picture.attrib["width"])
