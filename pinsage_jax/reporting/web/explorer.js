// The explorer: search, an item's neighbors by each method, and a map of the catalog.
//
// Text of users (titles, ids) only ever becomes the content of text nodes.  Where the data is
// in the page itself (explorer.html) `embedded` reads it, else (--mode=serve) `served` does; both
// answer search(words), item(id), any() and map().
"use strict";
(() => {
  const MOST_FOUND = 20;
  const LONGEST = 160;
  const NEAR = 14;
  const CLOSEST = 200;
  const byId = (name) => document.getElementById(name);
  const told = JSON.parse(byId("data").textContent);

  // Numbers come as little-endian bytes in base64.
  function unpacked(packed) {
    const text = atob(packed.data);
    const bytes = new Uint8Array(text.length);
    for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
    const kinds = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };
    return new kinds[packed.bytes](bytes.buffer);
  }

  const missing = (packed) => 2 ** (8 * packed.bytes) - 1;

  function embedded() {
    const { ids, titles } = told.items;
    const degree = unpacked(told.items.degree);
    const title = (row) => (titles === null ? null : titles[row]);
    const item = (row) => ({ id: ids[row], title: title(row), degree: degree[row] });
    const lowIds = ids.map((id) => id.toLowerCase());
    const lowTitles = ids.map((_, row) => (title(row) ?? "").toLowerCase());
    const rowOf = new Map(ids.map((id, row) => [id, row]));
    const methods = told.methods.map((method) => ({
      ...method,
      rows: unpacked(method.rows),
      scores: unpacked(method.scores),
      none: missing(method.rows),
      step: method.step,
    }));

    function search(words) {
      const whole = words.trim().toLowerCase();
      const parts = whole.split(/\s+/);
      const found = [];
      for (let row = 0; row < ids.length; row++) {
        const id = lowIds[row];
        const name = lowTitles[row];
        if (!parts.every((part) => id.includes(part) || name.includes(part))) continue;
        const rank = id === whole ? 0 : id.startsWith(whole) ? 1 : name.startsWith(whole) ? 2 : 3;
        found.push([rank, row]);
      }
      found.sort((a, b) => a[0] - b[0] || degree[b[1]] - degree[a[1]] || a[1] - b[1]);
      return {
        count: found.length,
        items: found.slice(0, MOST_FOUND).map(([, row]) => item(row)),
      };
    }

    function neighbors(method, row) {
      const found = [];
      for (let place = row * told.k; place < (row + 1) * told.k; place++) {
        if (method.rows[place] === method.none) break;
        const score = method.low + method.step * method.scores[place];
        found.push({ ...item(method.rows[place]), score });
      }
      return found;
    }

    return {
      search,
      item: (id) => {
        const row = rowOf.get(id);
        if (row === undefined) return null;
        return { ...item(row), lists: methods.map((method) => neighbors(method, row)) };
      },
      any: () => ids[Math.floor(Math.random() * ids.length)],
      map: () => ({ ...told.map, ids, degree: told.items.degree }),
    };
  }

  function served() {
    const ask = async (path, query = {}) => {
      const answer = await fetch(`explorer/${path}?${new URLSearchParams(query)}`);
      return answer.status === 404 ? null : answer.json();
    };
    return {
      search: (words) => ask("search", { words, most: MOST_FOUND }),
      item: (id) => ask("item", { id }),
      any: async () => (await ask("any")).id,
      map: () => ask("map"),
    };
  }

  const source = told.items ? embedded() : served();

  // Text of users on one line, without signs that have no shape, cut where it is very long.
  function shown(text) {
    const line = text.replace(/\s+/g, " ").replace(/\p{Cc}/gu, "\ufffd").trim();
    return line.length > LONGEST ? `${line.slice(0, LONGEST - 3)}...` : line;
  }

  function element(tag, ...children) {
    const made = document.createElement(tag);
    made.append(...children);
    return made;
  }

  // Text of users, kept from reordering what is around it.
  const foreign = (text) => element("bdi", shown(text));
  const titled = (item) => item.title !== null && item.title.trim() !== "";
  const nameOf = (item) => foreign(titled(item) ? item.title : item.id);
  const held = (item) =>
    item.degree === 1 ? "1 collection" : `${item.degree.toLocaleString("en")} collections`;
  const detailsOf = (item) => (titled(item) ? [foreign(item.id), " \u00b7 ", held(item)] : [held(item)]);
  const addressOf = (id) => `#${encodeURIComponent(id)}`;
  const scoreOf = (method, score) =>
    method.whole ? `${score.toLocaleString("en")} visits` : score.toFixed(3);

  function listOf(method, found, others, degree) {
    const box = element("div", element("h3", method.name), element("p", method.about));
    box.lastChild.className = "note";
    if (found.length === 0) {
      box.append(element("p", method.why[degree === 0 ? 0 : 1]));
      return box;
    }
    const entries = found.map((item) => {
      const link = element("a", nameOf(item));
      link.href = addressOf(item.id);
      const also = others.filter(([, ids]) => ids.has(item.id)).map(([name]) => name);
      const small = element("small", scoreOf(method, item.score), " \u00b7 ", ...detailsOf(item));
      if (also.length > 0) small.append(` \u00b7 also ${also.join(", ")}`);
      return element("li", link, small);
    });
    box.append(element("ol", ...entries));
    return box;
  }

  let asked = 0;
  let map = null;

  async function open(id, byPerson) {
    const ticket = ++asked;
    const item = await source.item(id);
    if (ticket !== asked) return;
    if (item === null) {
      byId("name").replaceChildren("There is no such item");
      byId("details").replaceChildren("No item has the id ", foreign(id), ".");
      byId("lists").replaceChildren();
      map?.mark(null, []);
      return;
    }
    byId("name").replaceChildren(nameOf(item));
    byId("details").replaceChildren(...detailsOf(item));
    const sets = item.lists.map((found, place) => [
      told.methods[place].name,
      new Set(found.map((other) => other.id)),
    ]);
    byId("lists").replaceChildren(
      ...item.lists.map((found, place) => {
        const others = sets.filter((_, other) => other !== place);
        return listOf(told.methods[place], found, others, item.degree);
      }),
    );
    map?.mark(item.id, item.lists[0].map((other) => other.id));
    document.body.dataset.item = item.id;
    if (byPerson) byId("name").focus();
  }

  function go(id) {
    if (location.hash === addressOf(id)) open(id, true);
    else location.hash = addressOf(id);
  }

  function addressed() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return location.hash.slice(1);
    }
  }

  // Search: a combobox; the arrows choose, Enter opens, Escape closes.
  const words = byId("words");
  const foundList = byId("found");
  let options = [];
  let chosen = -1;
  let searched = 0;

  function close() {
    foundList.hidden = true;
    foundList.replaceChildren();
    words.setAttribute("aria-expanded", "false");
    words.removeAttribute("aria-activedescendant");
    options = [];
    chosen = -1;
  }

  function choose(place) {
    const entries = [...foundList.children];
    chosen = (place + entries.length) % entries.length;
    entries.forEach((entry, at) => entry.setAttribute("aria-selected", String(at === chosen)));
    words.setAttribute("aria-activedescendant", entries[chosen].id);
    entries[chosen].scrollIntoView({ block: "nearest" });
  }

  async function search() {
    const ticket = ++searched;
    if (words.value.trim() === "") {
      close();
      byId("count").textContent = "";
      return;
    }
    const result = await source.search(words.value);
    if (ticket !== searched) return;
    close();
    options = result.items;
    foundList.replaceChildren(
      ...options.map((item, place) => {
        const entry = element("li", nameOf(item), element("small", ...detailsOf(item)));
        entry.id = `found-${place}`;
        entry.setAttribute("role", "option");
        entry.setAttribute("aria-selected", "false");
        // Before the field loses the focus, which closes the list.
        entry.addEventListener("pointerdown", (event) => event.preventDefault());
        entry.addEventListener("click", () => take(place));
        return entry;
      }),
    );
    foundList.hidden = options.length === 0;
    words.setAttribute("aria-expanded", String(options.length > 0));
    const count = result.count.toLocaleString("en");
    byId("count").textContent =
      result.count === 0
        ? "Nothing found."
        : result.count > options.length
          ? `${count} found, the first ${options.length} shown.`
          : `${count} found.`;
  }

  function take(place) {
    const { id } = options[place];
    words.value = "";
    byId("count").textContent = "";
    searched++;
    close();
    go(id);
  }

  words.addEventListener("input", search);
  words.addEventListener("blur", close);
  words.addEventListener("focus", search);
  words.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (options.length === 0) return;
    else if (event.key === "ArrowDown") choose(chosen + 1);
    else if (event.key === "ArrowUp") choose(chosen < 0 ? options.length - 1 : chosen - 1);
    else if (event.key === "Enter") take(Math.max(chosen, 0));
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const writing = event.target instanceof HTMLInputElement;
    if (event.key !== "/" || writing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    words.focus();
  });
  byId("any").addEventListener("click", async () => go(await source.any()));

  // The map: dots on a canvas, colored by how many collections hold the item.
  function drawnMap(data) {
    const canvas = byId("canvas");
    const context = canvas.getContext("2d");
    const { ids } = data;
    const none = missing(data.x);
    const x = unpacked(data.x);
    const y = unpacked(data.y);
    const degree = unpacked(data.degree);
    const placeOf = new Map(ids.map((id, place) => [id, place]));
    const colors = Uint8Array.from(
      degree,
      (count) => told.buckets.filter((bucket) => count >= bucket.from).length - 1,
    );
    let view = { scale: 1, x: 0.5, y: 0.5 };
    let self = null;
    let near = [];
    let waiting = false;

    function size() {
      const box = canvas.getBoundingClientRect();
      return { width: box.width, height: box.height, unit: Math.min(box.width, box.height) * 0.96 };
    }

    function place(at, box) {
      const zoom = (view.scale * box.unit) / none;
      return [
        box.width / 2 + x[at] * zoom - view.x * none * zoom,
        box.height / 2 - y[at] * zoom + view.y * none * zoom,
      ];
    }

    function draw() {
      waiting = false;
      const box = size();
      const dense = window.devicePixelRatio || 1;
      canvas.width = Math.round(box.width * dense);
      canvas.height = Math.round(box.height * dense);
      context.setTransform(dense, 0, 0, dense, 0, 0);
      const dot = Math.min(Math.max(250 / Math.sqrt(ids.length), 1.6), 5) + Math.log2(view.scale);
      context.globalAlpha = 0.8;
      let color = -1;
      for (let at = 0; at < x.length; at++) {
        if (x[at] === none) continue;
        const [left, top] = place(at, box);
        if (left < -9 || top < -9 || left > box.width + 9 || top > box.height + 9) continue;
        if (colors[at] !== color) {
          color = colors[at];
          context.fillStyle = told.buckets[color].color;
        }
        context.fillRect(left - dot / 2, top - dot / 2, dot, dot);
      }
      context.globalAlpha = 1;
      const ink = getComputedStyle(canvas).color;
      context.strokeStyle = ink;
      for (const at of near) circle(at, box, 4.5, 1.5);
      if (self !== null) {
        circle(self, box, 8, 2.5);
        circle(self, box, 2, 2.5);
      }
    }

    function circle(at, box, radius, width) {
      if (x[at] === none) return;
      context.lineWidth = width;
      context.beginPath();
      context.arc(...place(at, box), radius, 0, 2 * Math.PI);
      context.stroke();
    }

    function redraw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(draw);
    }

    function under(event) {
      const bounds = canvas.getBoundingClientRect();
      const box = size();
      let best = null;
      let least = NEAR * NEAR;
      for (let at = 0; at < x.length; at++) {
        if (x[at] === none) continue;
        const [left, top] = place(at, box);
        const far =
          (left + bounds.left - event.clientX) ** 2 + (top + bounds.top - event.clientY) ** 2;
        if (far < least) [best, least] = [at, far];
      }
      return best;
    }

    function look(scale, toX, toY) {
      const limit = (value) => Math.min(Math.max(value, 0), 1);
      view = { scale: Math.min(Math.max(scale, 1), CLOSEST), x: limit(toX), y: limit(toY) };
      if (view.scale === 1) view = { scale: 1, x: 0.5, y: 0.5 };
      // A finger that moves over the whole map scrolls the page, over a part it moves the map.
      canvas.classList.toggle("near", view.scale > 1);
      redraw();
    }

    // Towards the item shown, if it is on the map.
    function zoom(factor) {
      const center =
        self !== null && x[self] !== none && view.scale === 1
          ? [x[self] / none, y[self] / none]
          : [view.x, view.y];
      look(view.scale * factor, ...center);
    }

    let grip = null;
    canvas.addEventListener("pointerdown", (event) => {
      grip = { x: event.clientX, y: event.clientY, from: view, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (grip === null || event.buttons === 0) {
        const at = under(event);
        byId("under").replaceChildren(at === null ? "" : data.named(at));
        return;
      }
      const [right, down] = [event.clientX - grip.x, event.clientY - grip.y];
      grip.moved ||= Math.hypot(right, down) > 4;
      if (!grip.moved || view.scale === 1) return;
      const unit = size().unit * view.scale;
      look(view.scale, grip.from.x - right / unit, grip.from.y + down / unit);
    });
    canvas.addEventListener("pointerup", (event) => {
      const at = grip === null || grip.moved ? null : under(event);
      grip = null;
      if (at !== null) go(ids[at]);
    });
    canvas.addEventListener("pointercancel", () => (grip = null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        // Without Ctrl (which a pinch on a touchpad sends) the wheel scrolls the page.
        if (!event.ctrlKey) return;
        event.preventDefault();
        zoom(2 ** (-event.deltaY / 200));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const step = 0.1 / view.scale;
      const moves = {
        ArrowLeft: [-step, 0],
        ArrowRight: [step, 0],
        ArrowUp: [0, step],
        ArrowDown: [0, -step],
      };
      if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key in moves && view.scale > 1) {
        const [right, up] = moves[event.key];
        look(view.scale, view.x + right, view.y + up);
      } else return;
      event.preventDefault();
    });
    byId("closer").addEventListener("click", () => zoom(1.5));
    byId("farther").addEventListener("click", () => zoom(1 / 1.5));
    byId("whole").addEventListener("click", () => look(1, 0.5, 0.5));
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

    for (const { label, color } of told.buckets) {
      const key = element("i");
      key.className = "key";
      key.style.background = color;
      byId("legend").append(element("span", key, label));
    }
    byId("map-note").textContent = data.note;
    byId("map").hidden = false;
    draw();
    return {
      mark: (id, others) => {
        self = placeOf.get(id) ?? null;
        near = others.map((other) => placeOf.get(other)).filter((at) => at !== undefined);
        redraw();
      },
    };
  }

  async function begin() {
    byId("about").replaceChildren("Run ", foreign(told.run), told.lead);
    const id = addressed() || told.first;
    const data = await source.map();
    if (data !== null && data.x) {
      const named = (at) => foreign(told.items?.titles?.[at]?.trim() ? told.items.titles[at] : data.ids[at]);
      map = drawnMap({ ...data, named });
    }
    window.addEventListener("hashchange", () => open(addressed(), true));
    await open(id, false);
    document.body.dataset.ready = "yes";
    performance.mark("ready");
  }

  begin();
})();
