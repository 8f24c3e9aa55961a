// Thumbs up and down for a neighbor of an item, kept by the browser, saved as evaluation pairs.

const judgments = (() => {
  const key = `pinsage-thumbs-${pageData.catalog}`;
  // By query and target: "thumbs_up" or "thumbs_down".
  const kinds = new Map();
  const keyOf = (query, target) => JSON.stringify([query, target]);
  let onChange = () => {};

  // A browser may refuse storage, as for files; thumbs then last as long as the page.
  try {
    for (const [query, target, kind] of JSON.parse(localStorage.getItem(key) ?? "[]")) {
      kinds.set(keyOf(query, target), kind);
    }
  } catch {
    kinds.clear();
  }

  const pairs = () => [...kinds].map(([pair, kind]) => [...JSON.parse(pair), kind]);

  function set(query, target, kind) {
    if (kind === null) kinds.delete(keyOf(query, target));
    else kinds.set(keyOf(query, target), kind);
    try {
      localStorage.setItem(key, JSON.stringify(pairs()));
    } catch {
      // They are still on the page.
    }
    onChange();
  }

  // Two buttons of which at most one is pressed.
  function buttonsFor(query, item) {
    const box = withClass(element("span"), "thumbs");
    const made = [
      ["thumbs_up", "\u25b2", "Thumbs up for"],
      ["thumbs_down", "\u25bc", "Thumbs down for"],
    ].map(([kind, sign, label]) => {
      const created = button(sign, () => {
        const pressed = created.getAttribute("aria-pressed") === "true";
        set(query, item.id, pressed ? null : kind);
        refresh();
      });
      created.title = label.replace(" for", "");
      created.setAttribute("aria-label", `${label} ${oneLine(hasTitle(item) ? item.title : item.id)}`);
      return [kind, created];
    });
    function refresh() {
      const current = kinds.get(keyOf(query, item.id));
      for (const [kind, created] of made) {
        created.setAttribute("aria-pressed", String(kind === current));
      }
    }
    refresh();
    box.append(...made.map(([, created]) => created));
    return box;
  }

  function download(name, type, text) {
    const address = URL.createObjectURL(new Blob([text], { type }));
    const anchor = link(address);
    anchor.download = name;
    anchor.click();
    URL.revokeObjectURL(address);
  }

  const cell = (text) => `"${text.replaceAll('"', '""')}"`;

  // The columns of --eval_pairs.
  function saveCsv(kind) {
    const lines = pairs().filter((pair) => pair[2] === kind).map((pair) => pair.map(cell).join(","));
    download(`${kind}.csv`, "text/csv", `query_id,target_id,kind\n${lines.join("\n")}\n`);
  }

  // The columns as PinSage.evaluate takes them.
  function saveJson() {
    const [query_id, target_id, kind] = [0, 1, 2].map((place) => pairs().map((pair) => pair[place]));
    download("thumbs.json", "application/json", JSON.stringify({ query_id, target_id, kind }));
  }

  return {
    pairs,
    set,
    buttonsFor,
    saveCsv,
    saveJson,
    whenChanged: (action) => (onChange = action),
  };
})();
