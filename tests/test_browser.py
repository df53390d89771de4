"""Pages in a browser: headless Chromium, started here; skipped where there is none."""

import dataclasses
import shutil
import time

import numpy as np
import pytest
from test_page import HOSTILE, ONE, evaluation, five_tests, inspection

import jaxcircuits as jc
from jaxcircuits.report import write_page

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SMALL = jc.Graph.transformer(4, 4)
GPT2_SMALL = jc.Graph.transformer(12, 12)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of some records; afterwards nothing may stand in the browser's console."""

    def call(records, **parts):
        write_page(tmp_path / "page.html", records, **parts)
        browser.get((tmp_path / "page.html").as_uri())
        wait_for(browser, "return document.querySelectorAll('#graph .node').length > 0")
        return browser

    browser.get_log("browser")
    yield call
    assert browser.get_log("browser") == []


def wait_for(browser, script, seconds=20):
    end = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.02)


def click(browser, selector):
    browser.execute_script(
        "document.querySelector(arguments[0]).dispatchEvent(new MouseEvent('click', {bubbles: true}))", selector
    )


def put(browser, selector, value, event="input"):
    browser.execute_script(
        "const box = document.querySelector(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event(arguments[2], {bubbles: true}))",
        selector,
        value,
        event,
    )


def text(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def number(browser, selector):
    return browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def circuit(kept, graph=SMALL, **run):
    """The first edges after a shuffle; scores fall from 1."""
    order = np.random.default_rng(0).permutation(graph.num_edges)
    scores, mask = np.zeros(graph.shape), np.zeros(graph.shape, bool)
    scores[tuple(graph.edges[order].T)] = np.linspace(1, -0.2, graph.num_edges)
    mask[tuple(graph.edges[order[:kept]].T)] = True
    return jc.Circuit(graph, mask, scores, {"metric": "kl", **run})


@pytest.fixture
def sweep():
    return [circuit(kept, threshold=1 / kept, metric_final=1.0 / kept, decisions=[]) for kept in (4, 12, 30)]


def test_the_slider_goes_through_a_sweep(show, sweep):
    page = show(sweep)
    assert number(page, "#graph .edge") == 12 and number(page, "#charts .point") == 3
    put(page, "#sweep", 2)
    assert number(page, "#graph .edge") == 30 == number(page, "#table tbody tr")
    assert "30 edges" in text(page, "#controls output") and "30 of the model" in text(page, "#lead")
    click(page, "#charts .point")
    assert number(page, "#graph .edge") == 4
    put(page, "#sweep", 0)
    assert "4 edges" in text(page, "#controls output")


def test_a_clicked_node_shows_its_edges_and_its_attention(show):
    one = circuit(20, decisions=[])
    head = next(name for name in one.nodes if ".h" in name)
    page = show([one], inspections=[inspection(one)])
    click(page, f"#graph [data-node='{head}']")
    touching = [edge for edge in one.edges if head in edge.replace("<", "->").split("->")]
    assert number(page, "#graph .edge.near") == len(touching) and text(page, "#panel h2") == head
    assert number(page, "#panel .rows li") == len(touching)
    assert number(page, "#panel .pattern rect") == len(HOSTILE) * (len(HOSTILE) + 1) // 2
    assert HOSTILE[0] in text(page, "#panel select")
    click(page, "#panel .rows button")
    assert "→" in text(page, "#panel h2") and number(page, "#graph .edge.near") == 1
    click(page, "#panel .panel-head button")
    assert text(page, "#panel h2") == "Strongest edges" and number(page, "#graph .edge.near") == 0


def test_keys_do_what_the_pointer_does(show):
    from selenium.webdriver.common.keys import Keys

    page = show([circuit(20, decisions=[])])
    page.execute_script("document.querySelector('#graph [tabindex=\"0\"]').focus()")
    first = page.switch_to.active_element.get_attribute("data-node")
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    second = page.switch_to.active_element.get_attribute("data-node")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert first is not None and second not in (None, first) and text(page, "#panel h2") == second
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert text(page, "#panel h2") == "Strongest edges"


def test_search_filter_sort_and_kinds(show):
    one = circuit(30, decisions=[])
    page = show([one])
    put(page, "#search", "m1")
    found = [edge for edge in one.edges if "m1" in edge]
    assert number(page, "#graph .edge.near") == len(found) and f"{len(found)} edges of 30" in text(page, "#found")
    put(page, "#search", "no such node")
    assert number(page, "#graph .edge.near") == 0 and "0 edges of 30" in text(page, "#found")
    put(page, "#search", "")
    put(page, "#filter", "m1")
    assert number(page, "#table tbody tr") == len(found)
    rows = page.execute_script("return asText().split('\\n')")
    assert len(rows) == len(found) + 1 and rows[0].split("\t") == ["Sender", "Receiver", "Score"]
    scores = [float(row.split("\t")[2]) for row in rows[1:]]
    assert scores == sorted(scores, reverse=True)
    click(page, "#table th:nth-child(3) button")
    assert page.execute_script("return document.querySelector('#table [aria-sort=ascending]').textContent") == "Score ↑"
    click(page, "#legend input[value=v]")
    assert number(page, "#graph .edge") == sum(not edge.endswith("<v>") for edge in one.edges)


def test_light_and_dark(show):
    page = show([circuit(5, decisions=[])])
    paper = "return getComputedStyle(document.body).backgroundColor"
    colours = set()
    for scheme, other in (("light", "Dark"), ("dark", "Light")):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        wait_for(page, f"return document.querySelector('#theme').textContent.includes('{other}')")
        colours.add(page.execute_script(paper))
    assert len(colours) == 2
    dark = page.execute_script(paper)
    click(page, "#theme")
    assert page.execute_script(paper) in colours - {dark}


def test_hostile_tokens_are_text(show):
    one = circuit(10, decisions=[], task=HOSTILE[0], model=HOSTILE[1])
    page = show([one], inspections=[inspection(one)], title="<i>title</i>")
    tokens = page.execute_script("return [...document.querySelectorAll('.token')].map((e) => e.textContent)")
    assert tokens == list(HOSTILE)
    assert text(page, "#title") == "<i>title</i>" and number(page, "#title i") == 0
    assert number(page, "script") == 2 and number(page, "b b") == 0
    click(page, "#run summary")
    wait_for(page, "return document.querySelector('#run .record') !== null")
    assert HOSTILE[0] in text(page, "#run")


def test_scores_have_a_slider_over_the_best(show):
    scores = jc.Scores(SMALL, circuit(1).scores, True, "eap", {})
    page = show([scores])
    assert number(page, "#graph .edge") == 50
    put(page, "#best", 0)
    assert number(page, "#graph .edge") == 1
    put(page, "#controls input[type=number]", 7, "change")
    assert number(page, "#graph .edge") == 7 and "7 best" in text(page, "#lead")


def test_a_selected_circuit_and_the_best_edges_are_one_click_apart(show):
    page = show([circuit(30, method="eap")])
    assert number(page, "#graph .edge") == 30 and number(page, "#controls .slider[hidden]") == 1
    click(page, "#controls label:nth-of-type(2) input")
    assert number(page, "#graph .edge") == 50 and number(page, "#controls .slider[hidden]") == 0
    click(page, "#controls label:nth-of-type(1) input")
    assert number(page, "#graph .edge") == 30


def test_replicates_fade_what_is_not_sure_and_have_a_slider(show):
    one = circuit(20, metric_final=0.5)
    names = one.graph.names_of(one.graph.valid)[:30]
    kept = dict(zip(names, range(200, 50, -5), strict=True))
    record = {"count": 200, "kept": kept, "edges": [20], "metrics": [0.5], "jaccards": [1.0], "resample": "bootstrap"}
    page = show([dataclasses.replace(one, run={**one.run, "decisions": [], "replicates": record})])
    assert number(page, "#graph .edge") == 20
    assert "3 edges are kept in at least 95\u202f% of them, 27 in fewer" in text(page, "#lead")
    click(page, "#controls label:nth-of-type(2) input")
    assert number(page, "#graph .edge") == 3
    assert "The 3 edges of" in text(page, "#lead") and "kl is" not in text(
        page, "#lead"
    )  # it was found for the circuit
    put(page, "#share", 60)
    assert number(page, "#graph .edge") == 17 and "60\u202f%" in text(page, "#controls output")
    put(page, "#share", 1)
    assert number(page, "#graph .edge") == 30
    opacity = "return [...document.querySelectorAll('#graph .line')].map((line) => line.getAttribute('stroke-opacity'))"
    assert len(set(page.execute_script(opacity))) == 30
    page.execute_script("update({ edge: view.shown[2].id })")
    assert "95\u202f% (91\u202f% to 98\u202f%)" in text(page, "#panel")
    click(page, "#controls label:nth-of-type(1) input")
    assert number(page, "#graph .edge") == 20 and "kl is 0.5" in text(page, "#lead")


def test_circuits_of_clusters_show_their_prompts_and_no_curve(show):
    shared = {"metric_final": 1.0, "decisions": []}
    both = [
        circuit(5 + 5 * number, **shared, cluster={"number": number + 1, "prompts": prompts})
        for number, prompts in enumerate(([0, 2], [1]))
    ]
    page = show(both, inspections=[inspection(one) for one in both])  # of the first prompt
    assert "cluster 2: 1 prompt" in text(page, "#controls output") and number(page, "#charts figure") == 0
    assert number(page, "#prompts .prompts > li") == 0
    put(page, "#sweep", 0)
    assert "cluster 1: 2 prompts" in text(page, "#controls output")
    assert number(page, "#prompts .prompts > li") == 1 and "prompts of this cluster" in text(page, "#prompts")


def test_pointing_at_an_edge_names_it(show):
    one = circuit(20, decisions=[])
    page = show([one], inspections=[inspection(one)])
    page.execute_script(
        "document.querySelector('#graph .edge .hit').dispatchEvent("
        "new PointerEvent('pointermove', {bubbles: true, clientX: 99, clientY: 99}))"
    )
    assert not page.execute_script("return document.querySelector('#tip').hidden")
    assert text(page, "#tip b").replace(" → ", "->") in one.edges
    assert "score +" in text(page, "#tip") and "over 1 prompt" in text(page, "#tip")


def test_an_edge_into_a_shared_key_goes_to_all_heads_that_read_it(show):
    """Four heads, the upper two of which read through a0.g1<k>: one edge, one line to each of them."""
    graph, shared = jc.Graph.transformer(2, 4, 2), "input->a0.g1<k>"
    mask = graph.mask_of([shared, "input->a0.h0<q>", "a0.h2->logits", "a0.h3->logits", "a0.h0->logits"])
    page = show([jc.Circuit(graph, mask, mask.astype(float), {"decisions": []})])
    ends = page.execute_script(
        "const [edge] = view.shown.filter((edge) => edge.name === arguments[0]);"
        "const path = document.querySelector(`[data-edge='${edge.id}'] .line`).getAttribute('d');"
        "return path.split('M').slice(1).map((line) => line.trim().split(/[ C]+/).slice(-2).map(Number))",
        shared,
    )
    boxes = page.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#graph .node rect')].map((box) => ["
        "box.parentNode.dataset.node, ['x', 'y', 'width', 'height'].map((name) => Number(box.getAttribute(name)))]))"
    )
    for (x, y), head in zip(ends, ("a0.h2", "a0.h3"), strict=True):
        left, top, width, height = boxes[head]
        assert left < x < left + width and abs(y - top - height) < 0.01, head
    into = {}
    for head in ("a0.h0", "a0.h2", "a0.h3"):
        page.execute_script("update({node: arguments[0], edge: null})", head)
        into[head] = number(page, "#graph .edge.near.k"), "input" in text(page, "#panel .rows")
    assert into == {"a0.h0": (0, True), "a0.h2": (1, True), "a0.h3": (1, True)}


def test_what_a_circuit_is_worth_stands_beside_its_controls(show):
    page = show([ONE], judgements=[evaluation(), five_tests()])
    first = text(page, "#judged article")
    assert "Faithfulness" in first and "0.8" in first and "0.2 ± 0.141" in first and "random circuits" in first
    assert number(page, "#judged article") == 7 and number(page, "#judged .refused") == 0
    assert number(page, "#spreads .spread") == 4 and "over 3 prompts" in text(page, "#spreads h3")
    assert number(page, "#charts .lines .series") == 4 + 4 and number(page, "#charts .band") == 1  # and their legend
    verdicts = page.execute_script("return [...document.querySelectorAll('.verdict')].map((e) => e.textContent)")
    assert verdicts == [
        "undecided",
        "not rejected: for the circuit",
        "rejected: against the circuit",
        "rejected: for the circuit",
        "not rejected: against the circuit",
    ]
    assert "all ties" in text(page, ".tests li") and "0.4" in text(page, ".tests li:nth-child(2)")
    click(page, ".tests .chip")
    assert text(page, "#panel h2") == "a0.h1 → logits"


def test_refused_ratios_say_why(show):
    page = show([ONE], judgements=[evaluation(None)])
    assert number(page, "#judged b.refused") == 5 and "that is noise <b>" in text(page, "#judged article")
    assert number(page, "#judged article b b") == 0 and number(page, "#charts figure") == 0
    assert number(show([ONE]), "#judged > *") == 0


def test_empty_circuits_and_missing_parts_say_so(show):
    page = show([circuit(0, decisions=[])])
    assert "No edge is left" in text(page, "#graph") and "no edge in view" in text(page, "#table")
    assert "made without the model" in text(page, "#prompts")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(show, width):
    from selenium.webdriver.common.by import By

    one = circuit(60, decisions=[])
    page = show([one], inspections=[inspection(one)], judgements=[evaluation(None, one), five_tests(one)])
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wait_for(page, f"return innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
        graph = page.find_element(By.CSS_SELECTOR, "#graph svg").size
        assert 200 < graph["width"] <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_of_gpt2_small_is_quick(show, tmp_path):
    """32,491 scored edges, 500 kept; times are the page's own: from the start of loading to all being drawn."""
    loads = []
    for _ in range(2):
        page = show([circuit(500, GPT2_SMALL, method="eap")])
        loads.append(page.execute_script("return performance.getEntriesByName('drawn')[0].startTime"))
    assert min(loads) < 2000
    assert (tmp_path / "page.html").stat().st_size < 5e6 and number(page, "#graph .edge") == 500
    script = "const start = performance.now(); {}; document.body.offsetHeight; return performance.now() - start"
    for action in (
        "update({node: 'a5.h5', edge: null})",
        "update({node: null, query: 'm3'})",
        "update({best: 800})",
        "update({best: null})",
    ):
        assert min(page.execute_script(script.format(action)) for _ in range(2)) < 2000, action
