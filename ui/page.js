// All clips of the page show the same moment of their loop: the first one that plays leads.
(() => {
  const APART_SECONDS = 0.07;
  setInterval(() => {
    const clips = [...document.querySelectorAll("video.sync")].filter(clip => clip.readyState > 1);
    if (clips.length < 2) return;
    const [leader, ...others] = clips;
    for (const clip of others) {
      if (clip.paused) clip.play().catch(() => {});
      const apart = Math.abs(clip.currentTime - leader.currentTime);
      if (apart > APART_SECONDS && apart < leader.duration - APART_SECONDS)
        clip.currentTime = leader.currentTime;
    }
  }, 500);
})();

// Captions by keys: the field keeps the focus while the pictures turn.
document.addEventListener("keydown", event => {
  if (!event.target.closest?.("#caption-text")) return;
  const next = event.key === "Enter" && (event.ctrlKey || event.metaKey) ? "#save-next" : null;
  const button = next || { PageDown: "#next-picture", PageUp: "#previous-picture" }[event.key];
  if (!button) return;
  event.preventDefault();
  document.querySelector(button)?.click();
});

// Whatever changes these fields, keys, paste or an input method, is told to the page.
(() => {
  const TOLD = { "caption-text": "caption-typed", "change-words": "change-typed",
                 "change-instead": "change-typed" };
  const PAUSE_MILLISECONDS = 200;
  const waiting = {};
  document.addEventListener("input", event => {
    const field = event.target.closest?.(Object.keys(TOLD).map(id => "#" + id).join());
    if (!field) return;
    clearTimeout(waiting[field.id]);
    waiting[field.id] = setTimeout(
      () => document.getElementById(TOLD[field.id])?.click(), PAUSE_MILLISECONDS);
  });
})();
