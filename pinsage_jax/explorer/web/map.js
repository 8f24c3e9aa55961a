// The map: one dot per item on a canvas, colored by a column, with names of areas.

// The ends and the middle of a ramp of numbers; all can be told from white and from black.
const RAMP = [[58, 95, 205], [139, 82, 196], [201, 80, 143], [228, 118, 79], [233, 169, 44]];

function rampColor(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  const mixed = RAMP[low].map((value, part) => value + (place - low) * (RAMP[low + 1][part] - value));
  return `rgb(${mixed.map(Math.round).join(",")})`;
}

// A coloring of the items: the color of each code, the order in which dots are drawn, and the
// text of an item's value.
function coloringOf({ name, labels, others, ends, steps, codes: encoded }) {
  const codes = decodeIntegers(encoded);
  const missing = missingValue(encoded);
  const texts = labels ? [...labels] : [];
  if (others) texts.push(`other (${others.toLocaleString("en")} values)`);
  const colorOf = (code) => {
    if (code === missing || code >= (labels?.length ?? Infinity)) return pageData.other_color;
    return labels ? pageData.palette[code % pageData.palette.length] : rampColor(code / steps);
  };
  // Items without a value, or with a rare one, lie beneath the others.
  const depth = (code) => (code === missing ? -2 : labels && code >= labels.length ? -1 : 0);
  const order = Uint32Array.from(codes, (_, row) => row);
  order.sort((a, b) => depth(codes[a]) - depth(codes[b]) || (labels ? 0 : codes[a] - codes[b]) || a - b);
  const hasMissing = codes.includes(missing);
  const textOf = (row) => (labels && codes[row] !== missing ? texts[codes[row]] : null);
  return { name, texts, ends, codes, colorOf, order, hasMissing, textOf };
}

function swatch(color, label) {
  const sign = withClass(element("i"), "swatch");
  sign.style.background = color;
  return element("span", sign, oneLine(label));
}

function showLegend(coloring) {
  const parts = coloring.ends
    ? [rampLegend(coloring.ends)]
    : coloring.texts.map((text, code) => swatch(coloring.colorOf(code), text));
  if (coloring.hasMissing) parts.push(swatch(pageData.other_color, "no value"));
  byId("legend").replaceChildren(...parts);
}

function rampLegend(ends) {
  const bar = withClass(element("i"), "ramp");
  bar.style.background = `linear-gradient(to right, ${RAMP.map((color) => `rgb(${color})`).join(",")})`;
  const texts = withClass(element("span", ...ends.map((end) => element("span", end))), "ends");
  return withClass(element("span", bar, texts), "scale");
}

function createMap(data) {
  const canvas = byId("canvas");
  const context = canvas.getContext("2d");
  const { ids } = data;
  // Coordinates are below `range`; `range` itself means that the item is not on the map.
  const range = missingValue(data.x);
  const x = decodeIntegers(data.x);
  const y = decodeIntegers(data.y);
  const rowOf = new Map(ids.map((id, row) => [id, row]));
  let coloring = coloringOf(data.colors[0]);
  let view = { scale: 1, x: 0.5, y: 0.5 };
  let current = null;
  let marked = [];
  let drawPending = false;

  function size() {
    const box = canvas.getBoundingClientRect();
    return { width: box.width, height: box.height, unit: Math.min(box.width, box.height) * 0.96 };
  }

  // Canvas coordinates of a point.
  function place(pointX, pointY, box) {
    const zoom = (view.scale * box.unit) / range;
    return [
      box.width / 2 + pointX * zoom - view.x * range * zoom,
      box.height / 2 - pointY * zoom + view.y * range * zoom,
    ];
  }

  const position = (row, box) => place(x[row], y[row], box);

  function draw() {
    drawPending = false;
    const box = size();
    const pixelRatio = window.devicePixelRatio || 1;
    canvas.width = Math.round(box.width * pixelRatio);
    canvas.height = Math.round(box.height * pixelRatio);
    context.setTransform(pixelRatio, 0, 0, pixelRatio, 0, 0);
    const dot = Math.min(Math.max(250 / Math.sqrt(ids.length), 1.6), 5) + Math.log2(view.scale);
    context.globalAlpha = 0.8;
    let code = -1;
    for (const row of coloring.order) {
      if (x[row] === range) continue;
      const [left, top] = position(row, box);
      if (left < -9 || top < -9 || left > box.width + 9 || top > box.height + 9) continue;
      if (coloring.codes[row] !== code) {
        code = coloring.codes[row];
        context.fillStyle = coloring.colorOf(code);
      }
      context.fillRect(left - dot / 2, top - dot / 2, dot, dot);
    }
    context.globalAlpha = 1;
    const style = getComputedStyle(canvas);
    drawNames(box, style);
    context.strokeStyle = style.color;
    for (const row of marked) circle(row, box, 4.5, 1.5);
    if (current !== null) {
      circle(current, box, 8, 2.5);
      circle(current, box, 2, 2.5);
    }
  }

  // Names of areas, the largest first; one that would cover another is left out.
  function drawNames(box, style) {
    context.font = `600 ${box.width < 600 ? 11 : 13}px ${style.fontFamily}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = 4;
    context.strokeStyle = style.backgroundColor;
    context.fillStyle = style.color;
    const taken = [];
    for (const area of data.areas) {
      const [middle, top] = place(area.x, area.y, box);
      const half = context.measureText(area.name).width / 2 + 4;
      const left = Math.min(Math.max(middle, half), box.width - half);
      if (middle < 0 || middle > box.width || top < 10 || top > box.height - 10) continue;
      if (taken.some(([x, y, width]) => Math.abs(x - left) < width + half && Math.abs(y - top) < 18)) {
        continue;
      }
      taken.push([left, top, half]);
      context.strokeText(area.name, left, top);
      context.fillText(area.name, left, top);
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
  function rowAt(event) {
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

  const tooltip = byId("tooltip");

  function hideTooltip() {
    tooltip.hidden = true;
    tooltip.replaceChildren();
  }

  function showTooltip(row, event) {
    if (row === null) return hideTooltip();
    const item = data.itemAt(row);
    const value = coloring.textOf(row);
    const small = item.degree === undefined ? [] : [element("small", ...detailsOf(item))];
    for (const [name, text] of columnsOf(item)) {
      small.push(element("small", userText(name), " ", userText(text)));
    }
    if (value !== null && coloring.name !== data.colors[0].name && !pageData.columns.includes(coloring.name)) {
      small.push(element("small", userText(coloring.name), " ", userText(value)));
    }
    tooltip.replaceChildren(...pictureOf(item, "in-list"), element("div", nameOf(item), ...small));
    tooltip.hidden = false;
    const bounds = canvas.getBoundingClientRect();
    const [left, top] = [event.clientX - bounds.left, event.clientY - bounds.top];
    // On the side of the pointer where there is room.
    const { offsetWidth: width, offsetHeight: height } = tooltip;
    const atLeft = left + 14 + width > bounds.width ? left - 14 - width : left + 14;
    const atTop = top + 14 + height > bounds.height ? top - 14 - height : top + 14;
    tooltip.style.left = `${Math.max(atLeft, 0)}px`;
    tooltip.style.top = `${Math.max(atTop, 0)}px`;
  }

  function setView(scale, centerX, centerY) {
    const clamp = (value) => Math.min(Math.max(value, 0), 1);
    view = { scale: Math.min(Math.max(scale, 1), MAX_ZOOM), x: clamp(centerX), y: clamp(centerY) };
    if (view.scale === 1) view = { scale: 1, x: 0.5, y: 0.5 };
    // By touch, a zoomed map is dragged; otherwise the page scrolls.
    canvas.classList.toggle("zoomed", view.scale > 1);
    hideTooltip();
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
      if (event.pointerType !== "touch") showTooltip(rowAt(event), event);
      return;
    }
    const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.moved ||= Math.hypot(right, down) > 4;
    if (!drag.moved || view.scale === 1) return;
    const unit = size().unit * view.scale;
    setView(view.scale, drag.startView.x - right / unit, drag.startView.y + down / unit);
  });
  canvas.addEventListener("pointerup", (event) => {
    const row = drag === null || drag.moved ? null : rowAt(event);
    drag = null;
    if (row !== null) navigateTo(ids[row]);
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", hideTooltip);
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

  const choice = byId("color-by");
  choice.append(
    ...data.colors.map(({ name }, index) => {
      const option = element("option", oneLine(name));
      option.value = String(index);
      return option;
    }),
  );
  choice.addEventListener("change", () => {
    coloring = coloringOf(data.colors[Number(choice.value)]);
    showLegend(coloring);
    redraw();
  });
  const areas = data.areas.map((area) => {
    const show = () => setView(4, area.x / range, area.y / range);
    return element("li", button(`${area.name} (${area.items.toLocaleString("en")})`, show));
  });
  byId("areas").hidden = areas.length === 0;
  byId("area-list").append(...areas);
  byId("map-note").textContent = data.note;
  byId("map").hidden = false;
  showLegend(coloring);
  draw();
  return {
    mark: (id, others) => {
      current = rowOf.get(id) ?? null;
      marked = others.map((other) => rowOf.get(other)).filter((row) => row !== undefined);
      redraw();
    },
  };
}
