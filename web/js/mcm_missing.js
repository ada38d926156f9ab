// A workflow that is opened may name a model folder, motion module or LoRA that is not here. The
// frontend's own dialog only knows single files with a URL; these notices say where things belong.

import { forget, notify } from "./mcm_notices.js";
import { allNodes, isLinked, register, rootGraph, widgetOf } from "./mcm_graph.js";

const LORA = (name) =>
  `LoRA '${name}' is missing. Put the .safetensors file, or the PEFT folder, into models/loras and press R.`;
const LOADERS = {
  MCM_LoadVideoModel: ["model_name", (name) =>
    `Model folder '${name}' is missing. Put the diffusers folder (unet, vae, text_encoder, tokenizer, ` +
    "scheduler) into models/diffusers and press R."],
  MCM_AnimateDiff: ["motion_module", (name) =>
    `Motion module '${name}' is missing. Put it into models/animatediff_models and press R.`],
  MCM_LoadLora: ["lora_name", LORA],
  MCM_LoraInfo: ["lora_name", LORA],
};

/** Execution ids of a node: one for each place where its subgraph is used. */
function* idsOf(node, graph = rootGraph(), path = []) {
  for (const each of graph.nodes ?? []) {
    if (each === node) yield [...path, each.id].join(":");
    else if (each.subgraph) yield* idsOf(node, each.subgraph, [...path, each.id]);
  }
}

function check(node) {
  const [name, sentence] = LOADERS[node.comfyClass] ?? [];
  const widget = name && widgetOf(node, name);
  if (!widget) return;
  const values = typeof widget.options.values === "function" ? widget.options.values() : widget.options.values;
  const missing = !isLinked(node, name) && !(values ?? []).includes(widget.value);
  const text = missing && sentence(widget.value || "(none)");
  for (const id of idsOf(node)) {
    forget(id, (each) => each.kind === "missing" && each.text !== text);
    if (missing) notify(id, text, { kind: "missing" });
  }
}

function checkAll() {
  for (const node of allNodes()) check(node);
}

register({
  name: "mcm.missing",
  afterConfigureGraph: checkAll,
  refreshComboInNodes: checkAll,
  nodeCreated(node) {
    const widget = widgetOf(node, LOADERS[node.comfyClass]?.[0]);
    if (!widget) return;
    const before = widget.callback;
    widget.callback = function (...args) {
      const result = before?.apply(this, args);
      check(node);
      return result;
    };
  },
});
