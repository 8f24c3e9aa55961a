// Where the items come from: the page itself (explorer.html) or the server (--mode=serve).
//
// Both sources offer search(query), item(id), collection(id), review(), random() and map().

function embeddedSource() {
  const { ids, titles } = pageData.items;
  const degree = decodeIntegers(pageData.items.degree);
  const title = (row) => (titles === null ? null : titles[row]);
  const columns = pageData.items.columns.map(({ values, codes }) => {
    const decoded = decodeIntegers(codes);
    return (row) => values[decoded[row]] ?? null;
  });
  const { addresses, thumbnails } = pageData.items;
  function imageOf(row) {
    if (thumbnails?.[row]) return `data:image/webp;base64,${thumbnails[row]}`;
    const rest = addresses?.rest[row] ?? null;
    return rest === null ? null : addresses.prefix + rest;
  }
  const item = (row) => ({
    id: ids[row],
    title: title(row),
    degree: degree[row],
    image: imageOf(row),
    columns: columns.map((valueOf) => valueOf(row)),
  });
  const foldedIds = ids.map(fold);
  const foldedTitles = ids.map((_, row) => fold(title(row) ?? ""));
  const rowOf = new Map(ids.map((id, row) => [id, row]));
  const methods = pageData.methods.map((method) => ({
    ...method,
    rows: decodeIntegers(method.rows),
    scores: decodeIntegers(method.scores),
    missing: missingValue(method.rows),
  }));

  // Made when they are first asked for: a page is often opened for one search.
  const once = (make) => {
    let made;
    return () => (made ??= make());
  };
  const words = once(() => [
    ...new Set(foldedTitles.flatMap((text) => text.match(/[\p{L}\p{N}]+/gu) ?? [])),
  ]);
  const collections = once(() => {
    if (!pageData.collections) return null;
    const offsets = decodeIntegers(pageData.collections.offsets);
    const members = decodeIntegers(pageData.collections.items);
    const names = pageData.collections.ids;
    const starts = new Uint32Array(ids.length + 1);
    for (const row of members) starts[row + 1]++;
    for (let row = 0; row < ids.length; row++) starts[row + 1] += starts[row];
    const next = starts.slice();
    const holders = new Uint32Array(members.length);
    for (let number = 0; number < names.length; number++) {
      for (let place = offsets[number]; place < offsets[number + 1]; place++) {
        holders[next[members[place]]++] = number;
      }
    }
    const numberOf = new Map(names.map((name, number) => [name, number]));
    return { names, offsets, members, starts, holders, numberOf };
  });

  // First the item with this id, then ids, then titles that begin with the query; among
  // equals the item with more collections comes first.
  function search(query) {
    const whole = fold(query.trim());
    const parts = whole.split(/\s+/);
    const matching = (matches) => {
      const found = [];
      for (let row = 0; row < ids.length; row++) {
        if (!matches(row)) continue;
        const id = foldedIds[row];
        const startsTitle = foldedTitles[row].startsWith(whole);
        found.push([id === whole ? 0 : id.startsWith(whole) ? 1 : startsTitle ? 2 : 3, row]);
      }
      return found;
    };
    let found = matching(exactMatcher(parts, foldedIds, foldedTitles));
    let similar = false;
    if (found.length === 0) {
      const matches = typoMatcher(parts, foldedIds, foldedTitles, words);
      found = matches === null ? [] : matching(matches);
      similar = found.length > 0;
    }
    found.sort((a, b) => a[0] - b[0] || degree[b[1]] - degree[a[1]] || a[1] - b[1]);
    const items = found.slice(0, MAX_RESULTS).map(([, row]) => item(row));
    return { count: found.length, items, similar };
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

  function collectionsOf(row) {
    const all = collections();
    if (all === null) return null;
    const holders = all.holders.subarray(all.starts[row], all.starts[row + 1]);
    return [...holders.subarray(0, MAX_LISTED)].map((number) => all.names[number]);
  }

  return {
    search,
    item: (id) => {
      const row = rowOf.get(id);
      if (row === undefined) return null;
      return {
        ...item(row),
        neighbors: methods.map((method) => neighbors(method, row)),
        collections: collectionsOf(row),
      };
    },
    collection: (id) => {
      const all = collections();
      const number = all?.numberOf.get(id);
      if (number === undefined) return null;
      const members = all.members.subarray(all.offsets[number], all.offsets[number + 1]);
      const items = [...members.subarray(0, MAX_LISTED)].map(item);
      return { id, count: members.length, items };
    },
    review: () =>
      pageData.review.map(({ rows, values, targets, ...list }) => ({
        ...list,
        entries: rows.map((row, place) => ({
          ...item(row),
          value: values[place],
          target: targets === null ? null : item(targets[place]),
        })),
      })),
    random: () => ids[Math.floor(Math.random() * ids.length)],
    map: () => ({ ...pageData.map, ids, itemAt: item }),
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
    collection: (id) => request("collection", { id, limit: MAX_LISTED }),
    review: () => request("review"),
    random: async () => (await request("random")).id,
    map: async () => {
      const data = await request("map");
      const itemAt = (row) => ({ id: data.ids[row], title: null });
      return { ...data, itemAt };
    },
  };
}

const source = pageData.items ? embeddedSource() : serverSource();
