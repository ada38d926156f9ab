(() => {
  // All clips of the page show the same moment of their loop: the first one that plays leads.
  const APART_SECONDS = 0.07;
  const keepInStep = () => {
    const clips = [...document.querySelectorAll("video.sync")].filter(clip => clip.readyState > 1);
    const [leader, ...others] = clips;
    if (leader?.paused) leader.play().catch(() => {});
    for (const clip of others) {
      if (clip.paused) clip.play().catch(() => {});
      const apart = Math.abs(clip.currentTime - leader.currentTime);
      if (apart > APART_SECONDS && apart < leader.duration - APART_SECONDS)
        clip.currentTime = leader.currentTime;
    }
  };

  // A clip is fetched whole, one after another, when it comes into sight. A video element would keep
  // its connection open, and six of them would leave none for the step counter.
  const loaded = new Map();
  let loading = false;
  const loadNext = async () => {
    if (loading) return;
    const waiting = [...document.querySelectorAll("video[data-src]:not([src])")];
    const clip = waiting.find(each => each.offsetParent && !each.dataset.failed);
    if (!clip) return;
    loading = true;
    try {
      const answer = await fetch(clip.dataset.src);
      if (!answer.ok) throw new Error(answer.status);
      const address = URL.createObjectURL(await answer.blob());
      loaded.set(address, clip);
      clip.src = address;
    } catch {
      clip.dataset.failed = "1"; // it is gone; the next preview brings another
    } finally {
      loading = false;
      setTimeout(loadNext);
    }
  };
  const forgetGone = () => {
    for (const [address, clip] of loaded)
      if (!clip.isConnected) {
        URL.revokeObjectURL(address);
        loaded.delete(address);
      }
  };
  setInterval(() => {
    forgetGone();
    loadNext();
    keepInStep();
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
