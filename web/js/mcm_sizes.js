// A new Empty Latent Video offers the size and frames of the MODEL that is connected to it, and its
// arrows step from one possible value to the next. Values of an opened workflow, and those typed by
// the user, are never changed.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { allNodes, register, sourceOf, widgetOf } from "./mcm_graph.js";

const LATENT = "MCM_EmptyLatentVideo";
const SIDES = ["width", "height", "frames"];
const LORA = "lora_name";
const NAMES = { // loader -> the widget that names a file, and its parameter of the route
  MCM_LoadVideoModel: "model_name",
  MCM_AnimateDiff: "motion_module",
  UNETLoader: "unet_name",
  MCM_LoadLora: LORA,
  LoraLoaderModelOnly: LORA,
  LoraLoader: LORA,
};
const MUTED = 2;
const stepped = new WeakMap(); // node -> the names above it when its arrows were set
const offered = new WeakMap(); // new node -> the sizes it was given last, by its defaults or by us

function sizesOf(node) {
  return Object.fromEntries(SIDES.map((side) => [side, widgetOf(node, side)?.value]));
}

function untouched(node) {
  const last = offered.get(node);
  const now = sizesOf(node);
  return last !== undefined && SIDES.every((side) => now[side] === last[side]);
}

/**
 * The names that decide the size of a node's MODEL, going up its links, as [parameter, value]; null
 * without any. The LoRAs nearest first; a loader of another pack (GGUF) leaves them alone.
 */
function namesAbove(node) {
  const names = [];
  const seen = new Set();
  while (node && !seen.has(node)) {
    seen.add(node);
    const slot = (node.inputs ?? []).findIndex((each) => each.type === "MODEL" || node.isVirtualNode);
    const name = NAMES[node.comfyClass];
    const active = node.mode === undefined || node.mode === 0;
    if (node.mode === MUTED) return null;
    if (name && active) names.push([name, widgetOf(node, name)?.value]);
    if (name && name !== LORA && active) break;
    node = slot < 0 && !node.isVirtualNode ? null : sourceOf(node, Math.max(slot, 0));
  }
  return names.length ? names : null;
}

function setSteps(node, steps) {
  for (const side of SIDES) {
    const options = widgetOf(node, side).options;
    options.step2 = steps[side];
    options.step = 10 * steps[side]; // as older frontends count
  }
}

async function offer(node) {
  const names = namesAbove(node);
  if (!names) return;
  const query = String(new URLSearchParams(names));
  if (!untouched(node) && stepped.get(node) === query) return;
  const answer = await api.fetchApi(`/mcm/video_size?${query}`);
  if (!answer.ok) return; // the loader itself says what is missing
  const size = await answer.json();
  if (query !== String(new URLSearchParams(namesAbove(node) ?? []))) return;
  setSteps(node, size.steps);
  stepped.set(node, query);
  if (!untouched(node)) return;
  for (const side of SIDES) {
    const widget = widgetOf(node, side);
    widget.value = size[side];
    widget.callback?.(size[side], app.canvas, node);
  }
  offered.set(node, sizesOf(node));
  node.setDirtyCanvas?.(true, true);
}

/** Links and names change together, e.g. while a node is being put in between: look once, after. */
let planned = false;
function offerSoon() {
  if (planned) return;
  planned = true;
  setTimeout(() => {
    planned = false;
    for (const node of allNodes()) if (node.comfyClass === LATENT) void offer(node);
  });
}

function after(object, name, then) {
  const before = object[name];
  object[name] = function (...args) {
    const result = before?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

register({
  name: "mcm.sizes",
  beforeRegisterNodeDef(nodeType, nodeData) {
    after(nodeType.prototype, "onConnectionsChange", offerSoon);
    if (nodeData.name !== LATENT) return;
    after(nodeType.prototype, "onAdded", function () {
      if (offered.has(this)) offered.set(this, sizesOf(this));
    });
    after(nodeType.prototype, "onConfigure", function () {
      offered.delete(this); // opened, pasted or undone: these values are meant
    });
  },
  nodeCreated(node) {
    if (node.comfyClass === LATENT) offered.set(node, sizesOf(node));
    const widget = widgetOf(node, NAMES[node.comfyClass]);
    if (widget) after(widget, "callback", offerSoon);
  },
});
