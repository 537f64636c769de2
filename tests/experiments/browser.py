"""A page opened in a headless browser, as a user opens it: from a file, on a desktop and on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

LOOK = """
function look(view){
 const page=view.document,table=page.querySelector('table.sortable'),column=2;
 const read=function(){return Array.from(table.tBodies[0].rows).map(function(row){
   return parseFloat(row.cells[column].textContent);});};
 const button=table.tHead.rows[0].cells[column].querySelector('button');
 button.click();const down=read();button.click();const up=read();
 const pictures=Array.from(page.querySelectorAll('figure svg'));
 return {figures:pictures.length,
  empty:pictures.filter(function(svg){const box=svg.getBoundingClientRect();
   return box.width<100||box.height<40||svg.querySelectorAll('path').length<3;}).length,
  images:page.images.length,
  broken:Array.from(page.images).filter(function(image){return image.naturalWidth===0;}).length,
  down:down,up:up,page:page.documentElement.scrollWidth,window:view.innerWidth};
}
window.addEventListener('load',function(){
 const phone=document.getElementById('phone').contentWindow;
 document.body.setAttribute('data-result',JSON.stringify({desktop:look(window),phone:look(phone)}));
});
"""


def browse(page: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """Open a copy of the page with a script at its end; skips where there is no browser.

    Args:
        page: The HTML file.
        folder: For the copy and the browser's profile.

    Returns:
        What the script saw at 1280 pixels (``desktop``) and in a frame of 390 (``phone``), and what the console said.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: the page is not opened in a browser")
    text = page.read_text(encoding="utf-8")
    # pictures are looked at once, at the desk; all is loaded before the page's load event
    text = text.replace(' loading="lazy"', "")
    plain = re.sub(r'src="data:image/[^"]*"', 'src="data:image/gif;base64,R0lGODlhAQABAAAAACw="', text)
    frame = f'<iframe id="phone" style="width:390px;height:800px;border:0" srcdoc="{html.escape(plain)}"></iframe>'
    copy = folder / "page.html"
    copy.write_text(text.replace("</body>", f"{frame}<script>{LOOK}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
            "--window-size=1280,900", "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'<body data-result="([^"]*)"', done.stdout)
    assert found, f"{console}\n{done.stderr[-2000:]}"
    return json.loads(found[1].replace("&quot;", '"')), console


def check(page: Path, folder: Path, figures: int) -> None:
    """Assert that a report works: quiet console, every figure drawn, no broken picture, sortable, no side scroll."""
    seen, console = browse(page, folder)
    assert console == ""
    for name in ("desktop", "phone"):
        view = seen[name]
        assert view["figures"] >= figures, name
        assert view["empty"] == 0, name
        assert view["down"] == sorted(view["down"], reverse=True), name
        assert view["up"] == sorted(view["up"]), name
        assert len(view["down"]) > 1, name
        # tables scroll inside their card; the page itself never does so sideways
        assert view["page"] <= view["window"], name
    assert seen["desktop"]["broken"] == 0
    assert seen["phone"]["window"] == 390
