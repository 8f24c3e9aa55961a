// Constants, the data of the page, and how texts and links of the catalog become elements.
//
// The files of this folder are one script, in the order of explorer.py, inside one function.
// Text of the catalog (titles, ids, columns) is only ever inserted as text nodes.
const MAX_RESULTS = 20;
const MAX_LISTED = 200;
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

function withClass(created, name) {
  created.className = name;
  return created;
}

function button(label, action) {
  const created = element("button", label);
  created.type = "button";
  created.addEventListener("click", action);
  return created;
}

// Text of the catalog, isolated so that right-to-left text does not reorder its surroundings.
const userText = (text) => element("bdi", oneLine(text));
const hasTitle = (item) => item.title !== null && item.title.trim() !== "";
const nameOf = (item) => userText(hasTitle(item) ? item.title : item.id);
const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const degreeOf = (item) => counted(item.degree, "collection", "collections");
const detailsOf = (item) =>
  hasTitle(item) ? [userText(item.id), " \u00b7 ", degreeOf(item)] : [degreeOf(item)];
const addressOf = (id) => `#${encodeURIComponent(id)}`;
const addressOfCollection = (id) => `#/collection/${encodeURIComponent(id)}`;

function link(address, ...children) {
  const created = element("a", ...children);
  created.href = address;
  return created;
}

// The shown columns that the item has a value of: name and value.
function columnsOf(item) {
  const pairs = [];
  pageData.columns.forEach((name, index) => {
    const value = item.columns?.[index] ?? null;
    if (value !== null) pairs.push([name, value]);
  });
  return pairs;
}

// The picture of an item; it is decoration beside its name.
function pictureOf(item, className) {
  if (!item.image) return [];
  const picture = withClass(document.createElement("img"), `picture ${className}`);
  picture.alt = "";
  picture.loading = "lazy";
  picture.decoding = "async";
  // The host of a picture does not learn which page shows it.
  picture.referrerPolicy = "no-referrer";
  picture.addEventListener("error", () => picture.remove());
  picture.src = item.image;
  return [picture];
}
