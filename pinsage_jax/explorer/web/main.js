// The address of the page says what it shows; the search field, and the beginning.

function navigateTo(id) {
  if (location.hash === addressOf(id)) openItem(id, true);
  else location.hash = addressOf(id);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Ids are encoded in an address, so that one with a slash is none of the other views.
function openAddress(focusTitle) {
  const [view, ...rest] = location.hash.startsWith("#/") ? location.hash.slice(2).split("/") : [""];
  if (view === "collection") return openCollection(decoded(rest.join("/")), focusTitle);
  if (view === "review") return openReview(rest[0] ?? "", focusTitle);
  if (view === "thumbs") return openThumbs(focusTitle);
  return openItem(decoded(location.hash.slice(1)) || pageData.first_item, focusTitle);
}

// Search is a combobox: the arrow keys select, Enter opens, Escape closes.
const searchField = byId("search-field");
const resultList = byId("results");
let options = [];
let selected = -1;
let searchRequests = 0;

function close() {
  resultList.hidden = true;
  resultList.replaceChildren();
  searchField.setAttribute("aria-expanded", "false");
  searchField.removeAttribute("aria-activedescendant");
  options = [];
  selected = -1;
}

function select(index) {
  const entries = [...resultList.children];
  selected = (index + entries.length) % entries.length;
  entries.forEach((entry, i) => entry.setAttribute("aria-selected", String(i === selected)));
  searchField.setAttribute("aria-activedescendant", entries[selected].id);
  entries[selected].scrollIntoView({ block: "nearest" });
}

async function search() {
  const request = ++searchRequests;
  if (searchField.value.trim() === "") {
    close();
    byId("result-count").textContent = "";
    return;
  }
  const result = await source.search(searchField.value);
  if (request !== searchRequests) return;
  close();
  options = result.items;
  resultList.replaceChildren(
    ...options.map((item, index) => {
      const entry = element("li", nameOf(item), element("small", ...detailsOf(item)));
      entry.id = `result-${index}`;
      entry.setAttribute("role", "option");
      entry.setAttribute("aria-selected", "false");
      // Otherwise the field would lose the focus, which closes the list before the click.
      entry.addEventListener("pointerdown", (event) => event.preventDefault());
      entry.addEventListener("click", () => openOption(index));
      return entry;
    }),
  );
  resultList.hidden = options.length === 0;
  searchField.setAttribute("aria-expanded", String(options.length > 0));
  const count = counted(result.count, "item", "items");
  const found = result.similar ? "with a similar word" : "found";
  byId("result-count").textContent =
    result.count === 0
      ? "No item found."
      : result.count > options.length
        ? `${count} ${found}; showing the first ${options.length}.`
        : `${count} ${found}.`;
}

function openOption(index) {
  const { id } = options[index];
  searchField.value = "";
  byId("result-count").textContent = "";
  searchRequests++;
  close();
  navigateTo(id);
}

searchField.addEventListener("input", search);
searchField.addEventListener("blur", close);
searchField.addEventListener("focus", search);
searchField.addEventListener("keydown", (event) => {
  if (event.key === "Escape") close();
  else if (options.length === 0) return;
  else if (event.key === "ArrowDown") select(selected + 1);
  else if (event.key === "ArrowUp") select(selected < 0 ? options.length - 1 : selected - 1);
  else if (event.key === "Enter") openOption(Math.max(selected, 0));
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  searchField.focus();
});
byId("random").addEventListener("click", async () => navigateTo(await source.random()));

function showThumbs() {
  byId("thumbs-link").textContent = `Thumbs (${judgments.pairs().length.toLocaleString("en")})`;
}

async function begin() {
  byId("summary").replaceChildren("Run ", userText(pageData.run), pageData.summary);
  judgments.whenChanged(showThumbs);
  showThumbs();
  const data = await source.map();
  if (data !== null && data.x) map = createMap(data);
  byId("map-link").hidden = map === null;
  byId("map-link").addEventListener("click", () => {
    byId("map").scrollIntoView();
    byId("canvas").focus();
  });
  window.addEventListener("hashchange", () => openAddress(true));
  await openAddress(false);
  document.body.dataset.ready = "yes";
  performance.mark("ready");
}

begin();
