// The map of layers: a strip with a cell for each layer, tall and filled where the layer runs.

/** Layers as text: [0, 1, 2, 8] is "0–2, 8". */
export function spans(layers) {
  const found = [];
  for (const layer of layers) {
    const last = found.at(-1);
    if (last && layer === last[1] + 1) last[1] = layer;
    else found.push([layer, layer]);
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}

/** The sentence that stands for a map. `tense` is "run" for a plan and "ran" for an answer. */
export function describe(layers, nLayers, tense) {
  if (layers.length === nLayers) return `All ${nLayers} layers ${tense}.`;
  return `Layers ${spans(layers)} ${tense}: ${layers.length} of ${nLayers}.`;
}

/** Draw the map into an element; without layers it is emptied. */
export function drawMap(element, layers, nLayers, isPlanned) {
  element.replaceChildren();
  element.className = isPlanned ? "map planned" : "map";
  element.hidden = !layers;
  if (!layers) return;
  const running = new Set(layers);
  for (let layer = 0; layer < nLayers; layer++) {
    const cell = document.createElement("i");
    if (running.has(layer)) cell.className = "ran";
    cell.title = `layer ${layer}`;
    element.append(cell);
  }
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", describe(layers, nLayers, isPlanned ? "run" : "ran"));
}

/** The layers of such text as the server gives for a route: "0-2,8" is [0, 1, 2, 8]. */
export function layersIn(text) {
  return text.split(",").flatMap((span) => {
    const [from, to = from] = span.split("-").map(Number);
    return Array.from({ length: to - from + 1 }, (_, place) => from + place);
  });
}
