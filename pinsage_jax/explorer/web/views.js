// What the main section shows: an item, a collection, a list for review, or the given thumbs.

let openRequests = 0;
let map = null;

const scoreOf = (method, score) =>
  method.is_count ? counted(score, "visit", "visits") : score.toFixed(3);

function setHeading(...children) {
  byId("item-title").replaceChildren(...children);
}

// Empties what only items have.
function clear() {
  for (const name of ["picture", "details", "columns", "neighbors", "folded", "collections"]) {
    byId(name).replaceChildren();
  }
  byId("collections").hidden = true;
  delete document.body.dataset.item;
}

// Name, details and shown columns of an item in a list, after its picture.
function entryOf(item, ...more) {
  const small = element("small", ...more, ...detailsOf(item));
  for (const [name, value] of columnsOf(item)) {
    // A word speaks for itself, a number does not.
    const label = /^([\d.,:+-]+|yes|no)$/.test(value) ? [userText(name), " "] : [];
    small.append(" \u00b7 ", ...label, userText(value));
  }
  return [...pictureOf(item, "in-list"), element("div", link(addressOf(item.id), nameOf(item)), small)];
}

// A list of neighbors; `others` are [method, ids] of the other methods.
function listOf(method, neighbors, others, query) {
  const note = withClass(element("p", method.description), "note");
  const box = element("div", element("h3", method.name), note);
  const entries = neighbors.map((item) => {
    const also = others.filter(([, ids]) => ids.has(item.id)).map(([name]) => name);
    const [text, ...picture] = entryOf(item, scoreOf(method, item.score), " \u00b7 ").reverse();
    if (also.length > 0) text.lastChild.append(` \u00b7 also in ${also.join(", ")}`);
    const entry = element("li", ...picture, text, judgments.buttonsFor(query, item));
    return entry;
  });
  box.append(element("ol", ...entries));
  return box;
}

async function openItem(id, focusTitle) {
  const request = ++openRequests;
  const item = await source.item(id);
  // A later request has replaced this one.
  if (request !== openRequests) return;
  clear();
  if (item === null) {
    setHeading("Item not found");
    byId("details").replaceChildren("No item has the id ", userText(id), ".");
    map?.mark(null, []);
    return;
  }
  setHeading(nameOf(item));
  byId("picture").replaceChildren(...pictureOf(item, "large"));
  byId("details").replaceChildren(...detailsOf(item));
  for (const [name, value] of columnsOf(item)) {
    byId("columns").append(element("div", element("dt", userText(name)), element("dd", userText(value))));
  }
  const idsByMethod = item.neighbors.map((neighbors, method) => [
    pageData.methods[method].name,
    new Set(neighbors.map((neighbor) => neighbor.id)),
  ]);
  item.neighbors.forEach((neighbors, number) => {
    const method = pageData.methods[number];
    if (neighbors.length === 0) {
      // A method without neighbors takes a line, not a column.
      const reason = method.empty_reasons[item.degree === 0 ? 0 : 1];
      byId("folded").append(element("p", element("b", `${method.name}: `), reason));
      return;
    }
    const others = idsByMethod.filter((_, other) => other !== number);
    byId("neighbors").append(listOf(method, neighbors, others, item.id));
  });
  showCollectionsOf(item);
  map?.mark(item.id, item.neighbors[0].map((neighbor) => neighbor.id));
  document.body.dataset.item = item.id;
  if (focusTitle) byId("item-title").focus();
}

function showCollectionsOf(item) {
  if (!item.collections || item.collections.length === 0) return;
  byId("collections").hidden = false;
  const summary = element("summary", `In ${degreeOf(item)}`);
  const links = item.collections.map((id) => element("li", link(addressOfCollection(id), userText(id))));
  if (item.degree > links.length) {
    links.push(element("li", `and ${counted(item.degree - links.length, "other", "others")}`));
  }
  byId("collections").replaceChildren(summary, element("ul", ...links));
}

async function openCollection(id, focusTitle) {
  const request = ++openRequests;
  const found = await source.collection(id);
  if (request !== openRequests) return;
  clear();
  if (found === null) {
    setHeading("Collection not found");
    const reason = pageData.collections === null ? "This page holds no collections; --mode=serve does." : "";
    byId("details").replaceChildren("No collection has the id ", userText(id), ". ", reason);
    map?.mark(null, []);
    return;
  }
  setHeading("Collection ", userText(id));
  const shown = found.items.length < found.count ? `; the first ${found.items.length} are shown` : "";
  byId("details").replaceChildren(`${counted(found.count, "item", "items")}${shown}.`);
  byId("neighbors").append(...gridOf(found.items.map((item) => element("li", ...entryOf(item)))));
  map?.mark(null, found.items.map((item) => item.id));
  if (focusTitle) byId("item-title").focus();
}

// Entries in as many columns as there is room for.
const gridOf = (entries) => [withClass(element("ol", ...entries), "grid")];

async function openReview(key, focusTitle) {
  const request = ++openRequests;
  const lists = await source.review();
  if (request !== openRequests) return;
  clear();
  map?.mark(null, []);
  setHeading("Lists for review");
  if (focusTitle) byId("item-title").focus();
  if (lists === null) {
    byId("details").replaceChildren("The catalog is too large to list its items for review.");
    return;
  }
  const list = lists.find((each) => each.key === key) ?? lists[0];
  if (list === undefined) return;
  const tabs = lists.map((each) => {
    const tab = link(`#/review/${each.key}`, each.name);
    if (each === list) tab.setAttribute("aria-current", "page");
    return tab;
  });
  byId("details").replaceChildren(withClass(element("span", ...tabs), "tabs"));
  const entries = list.entries.map((item) => {
    const entry = element("li", ...entryOf(item, item.value, " \u00b7 "));
    if (item.target !== null) {
      const target = link(addressOf(item.target.id), nameOf(item.target));
      entry.lastChild.append(element("small", "target: ", target));
    }
    return entry;
  });
  const note = withClass(element("p", list.description), "note");
  byId("neighbors").append(element("div", element("h3", list.name), note, ...gridOf(entries)));
  map?.mark(null, list.entries.map((item) => item.id));
}

function openThumbs(focusTitle) {
  openRequests++;
  clear();
  map?.mark(null, []);
  const pairs = judgments.pairs();
  setHeading("Thumbs");
  if (focusTitle) byId("item-title").focus();
  const total = (kind) => pairs.filter((pair) => pair[2] === kind).length;
  byId("details").replaceChildren(
    pairs.length === 0
      ? "Judge the neighbors of an item with the buttons \u25b2 and \u25bc beside them; they are " +
          "listed here and can be saved as pairs for --eval_pairs."
      : `${total("thumbs_up")} up, ${total("thumbs_down")} down. They are kept by this browser alone.`,
  );
  if (pairs.length === 0) return;
  const saves = [
    button("Save thumbs up (CSV)", () => judgments.saveCsv("thumbs_up")),
    button("Save thumbs down (CSV)", () => judgments.saveCsv("thumbs_down")),
    button("Save both (JSON)", judgments.saveJson),
  ];
  const rows = pairs.map(([query, target, kind]) => {
    const remove = button("Remove", () => {
      judgments.set(query, target, null);
      openThumbs(true);
    });
    const words = kind === "thumbs_up" ? "\u25b2 up" : "\u25bc down";
    const names = [link(addressOf(query), userText(query)), " \u2192 ", link(addressOf(target), userText(target))];
    return element("li", element("div", ...names, element("small", words)), remove);
  });
  const note =
    "Thumbs up are pairs to be found: evaluate them with --eval_pairs=thumbs_up.csv. Thumbs down have " +
    "the same form, to be evaluated by themselves; there a low hit-rate is good.";
  byId("neighbors").append(
    element(
      "div",
      withClass(element("div", ...saves), "line"),
      withClass(element("p", note), "note"),
      ...gridOf(rows),
    ),
  );
}
