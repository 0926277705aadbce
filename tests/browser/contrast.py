"""Measures the contrast of what a page shows, as WCAG 2.2 defines it (relative luminance)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ENOUGH = 4.5
TEXTS = """() => {
  const parts = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, below) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map((index) => top[index] * alpha + below[index] * (1 - alpha));
  };
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(parts(getComputedStyle(each).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (colour) => {
    const [red, green, blue] = colour.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    const text = own.map((node) => node.textContent).join("").trim();
    if (!text || !element.checkVisibility() || element.closest("noscript, .unseen")) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const shown = over(parts(element instanceof SVGElement ? style.fill : style.color), ground);
    const [light, dark] = [luminance(shown), luminance(ground)].sort((one, other) => other - one);
    found.push([text.slice(0, 40), (light + 0.05) / (dark + 0.05)]);
  }
  return found;
}"""


def faint_texts(page: Page) -> list[tuple[str, float]]:
    """Return the visible texts whose contrast is too low, with it; raises AssertionError for a page without text."""
    texts = page.evaluate(TEXTS)
    assert texts
    return [(text, round(contrast, 2)) for text, contrast in texts if contrast < ENOUGH]
