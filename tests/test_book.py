"""The notebooks run from their sources, and the book of them: no warning, no dead link, and a real browser opens every page.

In one file, since the book is made of what has been run: several processes share the tests file by file.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import objectives
import proofs_check
import unrolling

ROOT = Path(__file__).parent.parent
WIDTHS = (1280, 390)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))

pytest.importorskip("myst_nb", reason="the book needs the dev or book extra")


@pytest.mark.filterwarnings("default")  # the machinery of jupyter warns of itself
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, executed):
    """With its solutions behind it and without a warning; what an assertion finds wrong is raised."""
    notebook = executed(path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) >= 3


@pytest.fixture(scope="session")
def site(book, executed, tmp_path_factory):
    """The book, built from the notebooks that this session has run, with verdicts of a few claims."""
    folder = tmp_path_factory.mktemp("book")
    report = folder / "report.json"
    chosen = ["coding_rate.value", "coding_rate.subspaces.papers_beta"]
    command = [sys.executable, "-m", "proofs_check", "run", *chosen, "--cases", "3", "--json", str(report)]
    subprocess.run([*command, "--html", str(folder / "report.html")], check=True, capture_output=True, cwd=ROOT)
    notebooks = {}
    for path in book.execute.notebooks():
        notebooks[path.stem] = copy.deepcopy(executed(path))
        cells = notebooks[path.stem].cells
        notebooks[path.stem].cells = [cell for cell in cells if "more" not in cell.metadata.get("tags", ())]
    bench = book.kept_benchmarks()
    assert bench
    status = book.build(folder / "site", cache=folder, report=report, bench=bench, notebooks=notebooks)
    return folder / "site", status


@pytest.mark.filterwarnings("default")
def test_the_book_is_built_without_a_warning_or_a_dead_link(site):
    assert site[1] == 0


def test_every_claim_has_its_place_and_some_their_verdicts(site, book):
    text = {path.stem: path.read_text() for path in (site[0] / "claims").glob("*.html")}
    for claim in proofs_check.CLAIMS:
        assert f'id="{book.ledger.target(claim.id)}"' in text[claim.stem], claim.id
    assert "wrong versions rejected" in text["coding_rate"]
    assert "refuted on" in text["coding_rate"]
    assert "wrong versions rejected" not in text["mssa"]
    assert "2 claims: 1 holds, 1 refuted" in text["index"]


def test_every_public_name_is_in_the_reference(site):
    text = "".join(path.read_text() for path in (site[0] / "api").glob("*.html"))
    for package in (objectives, unrolling, proofs_check):
        for name in package.__all__:
            if not isinstance(getattr(package, name), type(os)):
                assert f'id="{package.__name__}.{name}"' in text, name
    assert "\\(R(Z) = \\frac{1}{2}" in text  # equations are equations
    assert "$" not in re.sub(r"<pre.*?</pre>|<code.*?</code>|<script.*?</script>", "", text, flags=re.DOTALL)
    assert 'href="../claims/coding_rate.html#claim-coding-rate-value"' in text


def test_notebooks_show_what_they_made(site):
    for path in (site[0] / "notebooks").glob("*.html"):
        text = path.read_text()
        assert text.count("<img") >= 3, path.name
        assert "<details><summary>" in text.replace("<details>\n", "<details>")


def test_what_is_wrong_with_a_site_is_found(book, tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html">x</a><a href="#there">x</a><img src="c.png">')
    (tmp_path / "d.html").write_text('<a href="a.html#here">fine</a><script src="https://cdn.example/x.js"></script>')
    found = book.links.problems(tmp_path)
    assert [line.split(": ", 1)[1] for line in found] == [
        "b.html does not exist",
        "#there has no such place",
        "c.png does not exist",
        "fetches https://cdn.example/x.js",
    ]


def test_docstrings_become_restructured_text(book):
    lines = [
        "A $x^2$b.",
        "",
        "Claims",
        "------",
        "    mssa.step.exact, none.such",
        "Shapes",
        "    ``a|b`` and |c| and *args",
    ]
    found = book.api.restructured(lines, ["mssa.step.exact"])
    assert found[0] == r"A :math:`x^2`\ b."
    assert "    :ref:`mssa.step.exact <claim-mssa-step-exact>`, none.such" in found
    assert "------" not in found
    assert found[-1] == r"    ``a|b`` and \|c| and \*args"
    assert found[found.index("Shapes") - 1] == ""


def test_links_of_the_repository_lead_into_the_book(book):
    text = "[a](notebooks/03_cbsa.py) [b](../../03_cbsa.py#x) [c](CONTRIBUTING.md) [d](notebooks/results.md) [e](03_cbsa.py)"
    found = re.findall(r"\((.*?)\)", book.relinked(text))
    assert found == [
        "/notebooks/03_cbsa.ipynb",
        "/notebooks/03_cbsa.ipynb#x",
        "/contributing.md",
        "/results.md",
        "/notebooks/03_cbsa.ipynb",
    ]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that remembers what went wrong in it, and everything it asked for."""
    opened = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    opened.wrong, opened.asked = [], []
    opened.on(
        "console", lambda m: opened.wrong.append(f"{opened.url}: {m.text}") if m.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: opened.wrong.append(f"{opened.url}: {error}"))
    opened.on("requestfailed", lambda request: opened.wrong.append(f"{opened.url}: {request.url} failed"))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    opened.close()


LOOK = """async () => {
  if (document.querySelector('.math')) {
    while (!window.MathJax?.startup?.promise) await new Promise(done => setTimeout(done, 10));
    await MathJax.startup.promise;
  }
  for (const picture of document.images) picture.loading = 'eager';
  await Promise.all([...document.images].map(p => p.complete ? 0 : new Promise(done => p.onload = p.onerror = done)));
  return {
    broken: [...document.images].filter(p => !p.hidden && !p.naturalWidth).map(p => p.src.slice(0, 80)),
    equations: [...document.querySelectorAll('mjx-merror')].map(e => e.textContent),
    raw: [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length,
    title: document.title, heading: document.querySelectorAll('h1').length,
  };
}"""
WIDE = """() => [document.documentElement.scrollWidth, [...document.querySelectorAll('article *')].filter(
  e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre,.table-wrapper,mjx-container,.highlight,mjx-assistive-mml')
).slice(0, 3).map(e => e.outerHTML.slice(0, 120))]"""


@pytest.mark.filterwarnings("default")
def test_a_browser_clicks_through_every_page(site, page, tmp_path):
    """From the first page by "Next" to the last: every page is reached, and on each nothing is wrong at either width."""
    folder = site[0]
    pictures = Path(os.environ.get("BOOK_SCREENSHOTS", tmp_path))
    wrong, seen = [], []
    page.goto((folder / "index.html").as_uri())
    while True:
        name = page.url.split("/site/")[1].split("#")[0]
        seen.append(name)
        found = page.evaluate(LOOK)
        wrong += [f"{name}: {key}: {found[key]}" for key in ("broken", "equations", "raw") if found[key]]
        if found["heading"] != 1 or not found["title"]:
            wrong.append(f"{name}: {found['heading']} headings of the first order, title {found['title']!r}")
        for width in reversed(WIDTHS):
            page.set_viewport_size({"width": width, "height": 900})
            total, outside = page.evaluate(WIDE)
            if total > width:
                wrong.append(f"{name}: {total} pixels wide on a screen of {width}: {outside}")
            page.screenshot(path=pictures / f"{name.replace('/', '_')}-{width}.png")
        following = page.locator("a.next-page")
        if not following.count():
            break
        following.click()
        page.wait_for_load_state("load")
    unlinked = {"genindex.html", "search.html", "py-modindex.html"}
    everything = {
        str(path.relative_to(folder)) for path in folder.rglob("*.html") if path.parent.name not in ("bench", "_static")
    }
    assert set(seen) == everything - unlinked
    assert wrong == []
    assert page.wrong == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert len(list(pictures.glob("*.png"))) >= 2 * len(seen)


def test_a_browser_searches_and_finds(site, page):
    page.goto((site[0] / "index.html").as_uri())
    page.fill("input[name=q]", "feasibility_gap")
    page.keyboard.press("Enter")
    page.wait_for_selector("ul.search li a")
    assert any("objectives" in link for link in page.locator("ul.search li a").all_inner_texts())
    assert page.wrong == []


def test_knobs_turn_and_solutions_open(site, page):
    turned = 0
    for path in sorted((site[0] / "notebooks").glob("*.html")):
        if "knob" not in path.read_text():
            continue
        page.goto(path.as_uri())
        knob = page.locator("figure.knob").first
        before = knob.locator("img:visible").get_attribute("src")
        slider = knob.locator("input")
        last = slider.get_attribute("max")
        slider.evaluate(
            "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')) }",
            "0" if slider.input_value() == last else last,
        )
        assert knob.locator("img:visible").count() == 1
        assert knob.locator("img:visible").get_attribute("src") != before, path.name
        turned += 1
        solution = page.locator("details", has_text="Solution").first
        assert not solution.locator("pre").first.is_visible()
        solution.locator("summary").click()
        assert solution.locator("pre").first.is_visible()
    assert turned >= 8
    assert page.wrong == []


def test_both_colour_themes_can_be_read(site, page):
    """Text of the page, and of code, differs from its ground in brightness in light and in dark."""
    page.goto((site[0] / "notebooks" / "01_coding_rate.html").as_uri())
    brightness = """() => { const l = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return (r * .3 + g * .6 + b * .1) / 255 };
      const ground = e => { while (e && getComputedStyle(e).backgroundColor.match(/, 0\\)|transparent/)) e = e.parentElement;
        return e ? l(getComputedStyle(e).backgroundColor) : 1 };
      return ['article p', 'article h1', 'div.cell_input pre', 'article a'].map(s => document.querySelector(s)).filter(Boolean)
        .map(e => Math.abs(l(getComputedStyle(e).color) - ground(e))) }"""
    for theme in ("light", "dark"):
        page.evaluate(f"document.body.dataset.theme = '{theme}'")
        assert min(page.evaluate(brightness)) > 0.3, theme
