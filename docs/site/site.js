// What the theme leaves open for readers who use a keyboard or hear the page.
document.addEventListener("DOMContentLoaded", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  all(".sidebar-tree .caption").forEach((caption) => caption.setAttribute("aria-level", "2"));
  all(".sidebar-drawer").forEach((side) => side.setAttribute("aria-label", "All pages"));
  all(".toc-drawer").forEach((side) => side.setAttribute("aria-label", "On this page"));
  all("pre, .table-wrapper")
    .filter((box) => box.scrollWidth > box.clientWidth)
    .forEach((box) => (box.tabIndex = 0));
  all("th")
    .filter((cell) => !cell.textContent.trim())
    .forEach((cell) => cell.replaceWith(document.createElement("td")));
});
// Excerpts beside what a search finds are fetched, which browsers allow from a server alone.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
