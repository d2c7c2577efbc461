"""Open a report in headless Chromium at 1280 and 400 pixels and check what a reader of it would see.

    pip install playwright        # the browser is the system's: apt-get install chromium
    python benchmarks/report_in_browser.py DIR/report.html --output DIR

Fails where the page asks for anything, writes to the console, scrolls sideways, or has a figure that is not decoded.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTHS = (1280, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="directory for the screenshots")
    arguments = parser.parse_args()
    page_address = arguments.report.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            logged: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, logged=logged: logged.append(message.text))
            page.on("pageerror", lambda error, logged=logged: logged.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(page_address)
            page.screenshot(path=arguments.output / f"{arguments.report.stem}-{width}.png", full_page=True)
            asked = [address for address in asked if address != page_address and not address.startswith("data:")]
            scrolled = page.evaluate("document.documentElement.scrollWidth")
            figures = page.evaluate("[...document.images].map(image => [image.alt, image.naturalWidth, image.width])")
            assert not logged, logged
            assert not asked, asked
            assert scrolled <= width, f"the page is {scrolled} pixels wide in a window of {width}"
            assert figures
            assert all(natural for _, natural, _ in figures), figures
            print(f"{width}: {len(figures)} figures, {figures[0][2]} wide; the page {scrolled} wide; silent")
        browser.close()


if __name__ == "__main__":
    main()
