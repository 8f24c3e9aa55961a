// The explorer: search, the neighbors of an item by each method, and a map of the catalog.
//
// Text of the catalog (titles, ids) is only ever inserted as text nodes.  The data comes from
// the page itself (explorer.html, `embeddedSource`) or from the server (--mode=serve,
// `serverSource`); both sources offer search(query), item(id), random() and map().
"use strict";
(() => {
  const MAX_RESULTS = 20;
  const MAX_TEXT_LENGTH = 160;
  // Pixels between the pointer and the center of a dot.
  const HOVER_RADIUS = 14;
  const MAX_ZOOM = 200;
  const byId = (name) => document.getElementById(name);
  const pageData = JSON.parse(byId("data").textContent);

  // Integers are encoded as little-endian bytes in base64.
  function decodeIntegers(encoded) {
    const text = atob(encoded.data);
    const bytes = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
    const arrays = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };
    return new arrays[encoded.bytes](bytes.buffer);
  }

  // The largest number stands for a missing value.
  const missingValue = (encoded) => 2 ** (8 * encoded.bytes) - 1;

  function embeddedSource() {
    const { ids, titles } = pageData.items;
    const degree = decodeIntegers(pageData.items.degree);
    const title = (row) => (titles === null ? null : titles[row]);
    const item = (row) => ({ id: ids[row], title: title(row), degree: degree[row] });
    const lowIds = ids.map((id) => id.toLowerCase());
    const lowTitles = ids.map((_, row) => (title(row) ?? "").toLowerCase());
    const rowOf = new Map(ids.map((id, row) => [id, row]));
    const methods = pageData.methods.map((method) => ({
      ...method,
      rows: decodeIntegers(method.rows),
      scores: decodeIntegers(method.scores),
      missing: missingValue(method.rows),
    }));

    // First the item with this id, then ids, then titles that begin with the query; among
    // equals the item with more collections comes first.
    function search(query) {
      const whole = query.trim().toLowerCase();
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
        items: found.slice(0, MAX_RESULTS).map(([, row]) => item(row)),
      };
    }

    function neighbors(method, row) {
      const found = [];
      for (let index = row * pageData.k; index < (row + 1) * pageData.k; index++) {
        if (method.rows[index] === method.missing) break;
        const score = method.offset + method.step * method.scores[index];
        found.push({ ...item(method.rows[index]), score });
      }
      return found;
    }

    return {
      search,
      item: (id) => {
        const row = rowOf.get(id);
        if (row === undefined) return null;
        return { ...item(row), neighbors: methods.map((method) => neighbors(method, row)) };
      },
      random: () => ids[Math.floor(Math.random() * ids.length)],
      map: () => ({ ...pageData.map, ids, degree: pageData.items.degree }),
    };
  }

  function serverSource() {
    const request = async (path, parameters = {}) => {
      const response = await fetch(`explorer/${path}?${new URLSearchParams(parameters)}`);
      return response.status === 404 ? null : response.json();
    };
    return {
      search: (query) => request("search", { query, limit: MAX_RESULTS }),
      item: (id) => request("item", { id }),
      random: async () => (await request("random")).id,
      map: () => request("map"),
    };
  }

  const source = pageData.items ? embeddedSource() : serverSource();

  // Text on one line, without control characters, truncated.
  function oneLine(text) {
    const line = text.replace(/\s+/g, " ").replace(/\p{Cc}/gu, "\ufffd").trim();
    return line.length > MAX_TEXT_LENGTH ? `${line.slice(0, MAX_TEXT_LENGTH - 3)}...` : line;
  }

  function element(tag, ...children) {
    const created = document.createElement(tag);
    created.append(...children);
    return created;
  }

  // Text of the catalog, isolated so that right-to-left text does not reorder its surroundings.
  const userText = (text) => element("bdi", oneLine(text));
  const hasTitle = (item) => item.title !== null && item.title.trim() !== "";
  const nameOf = (item) => userText(hasTitle(item) ? item.title : item.id);
  const degreeOf = (item) =>
    item.degree === 1 ? "1 collection" : `${item.degree.toLocaleString("en")} collections`;
  const detailsOf = (item) =>
    hasTitle(item) ? [userText(item.id), " \u00b7 ", degreeOf(item)] : [degreeOf(item)];
  const addressOf = (id) => `#${encodeURIComponent(id)}`;
  const scoreOf = (method, score) =>
    method.is_count ? `${score.toLocaleString("en")} visits` : score.toFixed(3);

  // A list of neighbors; `others` are [method, ids] of the other methods.
  function listOf(method, neighbors, others, degree) {
    const box = element("div", element("h3", method.name), element("p", method.description));
    box.lastChild.className = "note";
    if (neighbors.length === 0) {
      box.append(element("p", method.empty_reasons[degree === 0 ? 0 : 1]));
      return box;
    }
    const entries = neighbors.map((item) => {
      const link = element("a", nameOf(item));
      link.href = addressOf(item.id);
      const also = others.filter(([, ids]) => ids.has(item.id)).map(([name]) => name);
      const small = element("small", scoreOf(method, item.score), " \u00b7 ", ...detailsOf(item));
      if (also.length > 0) small.append(` \u00b7 also in ${also.join(", ")}`);
      return element("li", link, small);
    });
    box.append(element("ol", ...entries));
    return box;
  }

  let openRequests = 0;
  let map = null;

  async function open(id, focusTitle) {
    const request = ++openRequests;
    const item = await source.item(id);
    // A later request has replaced this one.
    if (request !== openRequests) return;
    if (item === null) {
      byId("item-title").replaceChildren("Item not found");
      byId("details").replaceChildren("No item has the id ", userText(id), ".");
      byId("neighbors").replaceChildren();
      map?.mark(null, []);
      return;
    }
    byId("item-title").replaceChildren(nameOf(item));
    byId("details").replaceChildren(...detailsOf(item));
    const idsByMethod = item.neighbors.map((neighbors, method) => [
      pageData.methods[method].name,
      new Set(neighbors.map((neighbor) => neighbor.id)),
    ]);
    byId("neighbors").replaceChildren(
      ...item.neighbors.map((neighbors, method) => {
        const others = idsByMethod.filter((_, other) => other !== method);
        return listOf(pageData.methods[method], neighbors, others, item.degree);
      }),
    );
    map?.mark(item.id, item.neighbors[0].map((neighbor) => neighbor.id));
    document.body.dataset.item = item.id;
    if (focusTitle) byId("item-title").focus();
  }

  function navigateTo(id) {
    if (location.hash === addressOf(id)) open(id, true);
    else location.hash = addressOf(id);
  }

  function idFromAddress() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return location.hash.slice(1);
    }
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
    const count = `${result.count.toLocaleString("en")} ${result.count === 1 ? "item" : "items"}`;
    byId("result-count").textContent =
      result.count === 0
        ? "No item found."
        : result.count > options.length
          ? `${count} found; showing the first ${options.length}.`
          : `${count} found.`;
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

  // The map: one dot per item on a canvas, colored by the number of collections.
  function createMap(data) {
    const canvas = byId("canvas");
    const context = canvas.getContext("2d");
    const { ids } = data;
    // Coordinates are below `range`; `range` itself means that the item is not on the map.
    const range = missingValue(data.x);
    const x = decodeIntegers(data.x);
    const y = decodeIntegers(data.y);
    const degrees = decodeIntegers(data.degree);
    const rowOf = new Map(ids.map((id, row) => [id, row]));
    const colors = Uint8Array.from(
      degrees,
      (degree) => pageData.buckets.filter((bucket) => degree >= bucket.from).length - 1,
    );
    let view = { scale: 1, x: 0.5, y: 0.5 };
    let current = null;
    let neighbors = [];
    let drawPending = false;

    function size() {
      const box = canvas.getBoundingClientRect();
      return { width: box.width, height: box.height, unit: Math.min(box.width, box.height) * 0.96 };
    }

    // Canvas coordinates of a dot.
    function position(row, box) {
      const zoom = (view.scale * box.unit) / range;
      return [
        box.width / 2 + x[row] * zoom - view.x * range * zoom,
        box.height / 2 - y[row] * zoom + view.y * range * zoom,
      ];
    }

    function draw() {
      drawPending = false;
      const box = size();
      const pixelRatio = window.devicePixelRatio || 1;
      canvas.width = Math.round(box.width * pixelRatio);
      canvas.height = Math.round(box.height * pixelRatio);
      context.setTransform(pixelRatio, 0, 0, pixelRatio, 0, 0);
      const dot = Math.min(Math.max(250 / Math.sqrt(ids.length), 1.6), 5) + Math.log2(view.scale);
      context.globalAlpha = 0.8;
      let color = -1;
      for (let row = 0; row < x.length; row++) {
        if (x[row] === range) continue;
        const [left, top] = position(row, box);
        if (left < -9 || top < -9 || left > box.width + 9 || top > box.height + 9) continue;
        if (colors[row] !== color) {
          color = colors[row];
          context.fillStyle = pageData.buckets[color].color;
        }
        context.fillRect(left - dot / 2, top - dot / 2, dot, dot);
      }
      context.globalAlpha = 1;
      const ink = getComputedStyle(canvas).color;
      context.strokeStyle = ink;
      for (const row of neighbors) circle(row, box, 4.5, 1.5);
      if (current !== null) {
        circle(current, box, 8, 2.5);
        circle(current, box, 2, 2.5);
      }
    }

    function circle(row, box, radius, width) {
      if (x[row] === range) return;
      context.lineWidth = width;
      context.beginPath();
      context.arc(...position(row, box), radius, 0, 2 * Math.PI);
      context.stroke();
    }

    function redraw() {
      if (drawPending) return;
      drawPending = true;
      requestAnimationFrame(draw);
    }

    // The row of the dot nearest to the pointer, if one is near.
    function itemAt(event) {
      const bounds = canvas.getBoundingClientRect();
      const box = size();
      let nearest = null;
      let smallest = HOVER_RADIUS * HOVER_RADIUS;
      for (let row = 0; row < x.length; row++) {
        if (x[row] === range) continue;
        const [left, top] = position(row, box);
        const distance =
          (left + bounds.left - event.clientX) ** 2 + (top + bounds.top - event.clientY) ** 2;
        if (distance < smallest) [nearest, smallest] = [row, distance];
      }
      return nearest;
    }

    function setView(scale, centerX, centerY) {
      const clamp = (value) => Math.min(Math.max(value, 0), 1);
      view = { scale: Math.min(Math.max(scale, 1), MAX_ZOOM), x: clamp(centerX), y: clamp(centerY) };
      if (view.scale === 1) view = { scale: 1, x: 0.5, y: 0.5 };
      // By touch, a zoomed map is dragged; otherwise the page scrolls.
      canvas.classList.toggle("zoomed", view.scale > 1);
      redraw();
    }

    // Zooms in on the current item if the whole map is visible, else on the center.
    function zoom(factor) {
      const center =
        current !== null && x[current] !== range && view.scale === 1
          ? [x[current] / range, y[current] / range]
          : [view.x, view.y];
      setView(view.scale * factor, ...center);
    }

    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.clientX, y: event.clientY, startView: view, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag === null || event.buttons === 0) {
        const row = itemAt(event);
        byId("hovered").replaceChildren(row === null ? "" : data.nameAt(row));
        return;
      }
      const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
      drag.moved ||= Math.hypot(right, down) > 4;
      if (!drag.moved || view.scale === 1) return;
      const unit = size().unit * view.scale;
      setView(view.scale, drag.startView.x - right / unit, drag.startView.y + down / unit);
    });
    canvas.addEventListener("pointerup", (event) => {
      const row = drag === null || drag.moved ? null : itemAt(event);
      drag = null;
      if (row !== null) navigateTo(ids[row]);
    });
    canvas.addEventListener("pointercancel", () => (drag = null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        // Without Ctrl, which a pinch gesture on a touchpad also sets, the wheel scrolls the page.
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
        setView(view.scale, view.x + right, view.y + up);
      } else return;
      event.preventDefault();
    });
    byId("zoom-in").addEventListener("click", () => zoom(1.5));
    byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
    byId("reset-view").addEventListener("click", () => setView(1, 0.5, 0.5));
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

    for (const { label, color } of pageData.buckets) {
      const swatch = element("i");
      swatch.className = "swatch";
      swatch.style.background = color;
      byId("legend").append(element("span", swatch, label));
    }
    byId("map-note").textContent = data.note;
    byId("map").hidden = false;
    draw();
    return {
      mark: (id, others) => {
        current = rowOf.get(id) ?? null;
        neighbors = others.map((other) => rowOf.get(other)).filter((row) => row !== undefined);
        redraw();
      },
    };
  }

  async function begin() {
    byId("summary").replaceChildren("Run ", userText(pageData.run), pageData.summary);
    const id = idFromAddress() || pageData.first_item;
    const data = await source.map();
    if (data !== null && data.x) {
      const titles = pageData.items?.titles;
      const nameAt = (row) => userText(titles?.[row]?.trim() ? titles[row] : data.ids[row]);
      map = createMap({ ...data, nameAt });
    }
    window.addEventListener("hashchange", () => open(idFromAddress(), true));
    await open(id, false);
    document.body.dataset.ready = "yes";
    performance.mark("ready");
  }

  begin();
})();
