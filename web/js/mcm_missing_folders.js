// Says on opening a graph which model *folders* it names that are not here. The frontend does this
// for files; it cannot see folders (diffusers models, PEFT LoRAs, motion adapters).
import { app } from "../../scripts/app.js";

const PLACES = {
    MCM_LoadVideoModel: ["model_name", "models/diffusers"],
    MCM_LoadLora: ["lora_name", "models/loras"],
    MCM_LoraInfo: ["lora_name", "models/loras"],
    MCM_AnimateDiff: ["motion_module", "models/animatediff_models"],
};
const FILE = /\.(safetensors|sft|ckpt|pt|pth|bin)$/i;
const WORDS = {
    en: ["Model folders are missing", "put the folder {name} into {place}", "then press R"],
    de: ["Modellordner fehlen", "den Ordner {name} nach {place} legen", "danach R drücken"],
    zh: ["缺少模型文件夹", "请将文件夹 {name} 放入 {place}", "然后按 R 键"],
};
const MILLISECONDS = 30000;

function nodesOf(graph) {
    return (graph?.nodes ?? []).flatMap((node) => [node, ...nodesOf(node.subgraph)]);
}

function addressOf(node, name) {
    const entries = node.properties?.models ?? [];
    return entries.find((entry) => entry.name?.startsWith(`${name}/`))?.url ?? "";
}

// [title, name, place, address] of every widget that names a folder which it does not offer.
function missingFolders(graph) {
    return nodesOf(graph).flatMap((node) => {
        const [label, place] = PLACES[node.type] ?? [];
        const widget = node.widgets?.find((each) => each.name === label);
        const offered = widget?.options?.values;
        const values = typeof offered === "function" ? offered(widget, node) : offered;
        const name = widget?.value;
        if (!Array.isArray(values) || !name || FILE.test(name) || values.includes(name)) return [];
        return [[node.title, name, place, addressOf(node, name)]];
    });
}

app.registerExtension({
    name: "mcm-video.missing-folders",
    afterConfigureGraph() {
        const missing = missingFolders(app.graph);
        if (!missing.length) return;
        const language = String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
        const [summary, put, press] = WORDS[language.split("-")[0]] ?? WORDS.en;
        const lines = missing.map(([title, name, place, address]) => {
            const told = put.replace("{name}", name).replace("{place}", place);
            return `${title}: ${told}${address ? ` (${address})` : ""}, ${press}.`;
        });
        const detail = [...new Set(lines)].join("\n");
        app.extensionManager.toast.add({ severity: "warn", summary, detail, life: MILLISECONDS });
    },
});
