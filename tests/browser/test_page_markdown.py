"""What a model writes is data: it is drawn as text and as a little Markdown, whatever it tries to be."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect

from deltafan.broker.queue import AsyncQueue
from deltafan.events import Error, ReasoningDelta, RefusalDelta, ToolCallDelta, ToolResult
from tests.browser.kit import answer, is_done, needs_browser, send
from tests.e2e.relay_kit import HandWorker, running_relay

pytestmark = needs_browser

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    '<svg onload="alert(3)"><a xlink:href="javascript:alert(4)">x</a></svg>',
    "<iframe src='https://evil.example'></iframe><style>*{display:none}</style>",
    "[click](javascript:alert(5))",
    "[click](JaVaScRiPt:alert(6) 'title')",
    "[click](data:text/html,<script>alert(7)</script>)",
    "[click](vbscript:x) [click](&#106;avascript:alert(8)) [click](//evil.example) [click](/v1/jobs)",
    "[click](java\tscript:alert(9))",
    "<javascript:alert(10)>",
    "![x](https://evil.example/track.png)",
    "![x](javascript:alert(11))",
    '[x](https://a.example/"onmouseover="alert(12))',
    '`<b onclick="x">` ```html\n<script>alert(13)</script>\n```',
    "| <img src=x onerror=alert(14)> | b |\n|---|---|\n| [x](javascript:y) | **<b>c</b>** |",
    "> - # **[x](javascript:alert(15))**",
]
ALLOWED = "P BR A SPAN EM STRONG DEL CODE PRE UL OL LI H3 H4 H5 H6 HR BLOCKQUOTE DIV TABLE THEAD TBODY TR TH TD"

SAMPLE = """# Title

Some *emphasis*, **strong**, ***both***, ~~gone~~, `code with **stars**` and snake_case_words, 2 * 3 * 4.
A second line with [a link](https://example.org/a_(b)) and https://example.org/bare, end.

1. one
2. two
   - inner *a*
   - inner b

   still two
10. ten

7. loose

8. list

- [ ] open
- done

> quote
> goes **on**
lazily

| left | right |
|:-----|------:|
| `a|b` | 1 |
| c | **2** |

```python
def f(x):
    # not a heading
    return x ** 2

print("- no list")
```

***

Text right
before a list:
* star
* list

| a | b
|---|---
| 1 | 2

~~~
open fence
"""

STREAMED = """async ([text, cuts]) => {
  const { Markdown } = await import("/static/markdown.js");
  const draw = (pieces) => {
    const root = document.createElement("div");
    const markdown = new Markdown(root);
    for (const piece of pieces) markdown.append(piece);
    return root.innerHTML;
  };
  const pieces = [];
  let from = 0;
  for (const cut of [...cuts, text.length]) {
    pieces.push(text.slice(from, cut));
    from = cut;
  }
  return [draw([text]), draw(pieces)];
}"""
DRAWN = """async (text) => {
  const { Markdown } = await import("/static/markdown.js");
  const root = document.createElement("div");
  const began = performance.now();
  new Markdown(root).append(text);
  return { html: root.innerHTML, text: root.innerText, milliseconds: performance.now() - began };
}"""


@pytest.fixture
async def at_page(queue: AsyncQueue, page: Page) -> Any:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        yield page


async def drawn(page: Page, text: str) -> str:
    found: dict[str, str] = await page.evaluate(DRAWN, text)
    return found["html"]


async def test_a_hostile_answer_opens_no_way_into_the_page(queue: AsyncQueue, worker: HandWorker, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(f"alert {dialog.message}"))
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        evil = "\n\n".join(HOSTILE)
        await send(page, evil)
        work = await worker.take()
        for text in HOSTILE:
            await work.say(text + "\n\n", ReasoningDelta(text=text), RefusalDelta(text=text))
        await work.say(
            ToolCallDelta(index=0, call_id="c", name=HOSTILE[0]), ToolCallDelta(index=0, arguments=HOSTILE[1])
        )
        await work.say(ToolResult(call_id="c", name="x", result=HOSTILE[2]))
        await work.say(Error(code="server_error", message=HOSTILE[0]))
        await work.finish("failed", "error")
        await is_done(page, "failed")
        tags = set(await answer(page).evaluate("node => [...node.querySelectorAll('*')].map(n => n.tagName)"))
        assert tags <= set(ALLOWED.split())
        turn = page.locator(".turn")
        assert await turn.locator("img, script, svg, iframe, style, object, embed, form, base, meta, link").count() == 0
        names = await turn.evaluate(
            "n => [...n.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name))"
        )
        assert not [name for name in names if name.startswith("on") or name == "style"]
        links = await turn.evaluate("node => [...node.querySelectorAll('a')].map(a => [a.protocol, a.rel, a.target])")
        assert links
        assert all(link == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
        assert await page.text_content(".prompt") == evil
        assert await page.text_content(".reasoning p") == "".join(HOSTILE)
        await expect(page.locator(".tools b")).to_have_text(HOSTILE[0])
        assert "<script>alert(2)</script>" in await answer(page).inner_text()
        assert all(url.startswith(relay.url) for url in asked), asked


async def test_markdown_is_drawn(at_page: Page) -> None:
    html = await drawn(at_page, SAMPLE)
    for piece in (
        "<h3>Title</h3>",
        "<em>emphasis</em>, <strong>strong</strong>, <strong><em>both</em></strong>, <del>gone</del>",
        "<code>code with **stars**</code> and snake_case_words, 2 * 3 * 4.<br>",
        'href="https://example.org/a_(b)"',
        ">https://example.org/bare</a>, end.",
        "<ol><li>one</li><li><p>two</p><ul><li>inner <em>a</em></li><li>inner b</li></ul><p>still two</p></li>",
        "<blockquote><p>quote<br>goes <strong>on</strong><br>lazily</p></blockquote>",
        '<th>left</th><th data-align="right">right</th>',
        '<td data-align="right"><strong>2</strong></td>',
        '<code data-language="python">def f(x):\n    # not a heading\n    return x ** 2\n\nprint("- no list")</code>',
        "<hr>",
        "before a list:</p><ul><li>star</li><li>list</li></ul>",
        "<code>open fence\n</code>",
    ):
        assert piece in html


async def test_a_text_in_pieces_is_drawn_as_the_same_text_at_once(at_page: Page) -> None:
    every = [*range(1, len(SAMPLE))]
    for cuts in (every, every[::3], every[1::7], every[2::20]):
        at_once, in_pieces = await at_page.evaluate(STREAMED, [SAMPLE, cuts])
        assert in_pieces == at_once


async def test_half_finished_markdown_is_shown_as_far_as_it_goes(at_page: Page) -> None:
    for text, html in (
        ("a **b", "<p>a **b</p>"),
        ("a [b](https://c", "<p>a [b](" + await _link(at_page, "https://c") + "</p>"),
        ("```js\nlet a", '<pre tabindex="0"><code data-language="js">let a</code></pre>'),
        ("`a", "<p>`a</p>"),
        ("| a | b |", "<p>| a | b |</p>"),
        ("-", "<ul><li></li></ul>"),
    ):
        assert await drawn(at_page, text) == html


async def _link(page: Page, url: str) -> str:
    return (await drawn(page, url)).removeprefix("<p>").removesuffix("</p>")


async def test_no_repetition_takes_the_page_long(at_page: Page) -> None:
    for piece in (
        "*",
        "**a ",
        "[",
        "![",
        "`",
        "> ",
        "- ",
        "| a ",
        "_a ",
        "<",
        "](",
        "~~",
        "```\n",
        "1. ",
        "# ",
        "|-",
        " #",
    ):
        found = await at_page.evaluate(DRAWN, piece * (60_000 // len(piece)))
        assert found["milliseconds"] < 5000, piece


async def test_no_long_line_takes_the_page_long(at_page: Page) -> None:
    for begins in ("#", "```", "-", "|-", "a | b\n-", "* *", "> ", "1. a", "[a](b", "`", "**a"):
        for ends in ("x", "`", "#", "|", "-"):
            found = await at_page.evaluate(DRAWN, begins + " " * 60_000 + ends)
            assert found["milliseconds"] < 2000, (begins, ends)
