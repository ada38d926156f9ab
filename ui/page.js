(() => {
  // All clips of the page show the same moment of their loop: the first one that plays leads.
  const APART_SECONDS = 0.07;
  let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.addEventListener("click", event => {
    if (!event.target.closest?.(".pause")) return;
    paused = !paused;
    showClips();
  });
  const showClips = () => {
    for (const button of document.querySelectorAll(".pause"))
      button.textContent = paused ? "Play clips" : "Pause clips";
    if (!paused) return keepInStep();
    for (const clip of document.querySelectorAll("video.sync")) clip.pause();
  };
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
    showClips();
  }, 500);
})();

// A field is marked while a message on the page names it: by its setting or by its label.
(() => {
  const SAID = ".toast-body.error, #readiness .notice.bad > pre, #readiness .finding.bad";
  const FIELDS = "[id^='field-'], #run-name";
  const named = (field, said) => {
    const setting = field.id.replace("field-", "");
    const label = field.querySelector("[data-testid='block-info']")?.textContent.trim();
    const settings = text => [...text.matchAll(/`([a-z0-9_.]+)`/g)].map(found => found[1]);
    return said.some(({ text, about }) =>
      [about, ...settings(text)].some(name => name?.replace(/[._]/g, "-") === setting)
      || (label && (text.includes(`${label}: `) || text.includes(`${label} is empty`))));
  };
  setInterval(() => {
    const said = [...document.querySelectorAll(SAID)].map(
      each => ({ text: each.textContent, about: each.dataset.setting }));
    for (const field of document.querySelectorAll(FIELDS)) {
      const wrong = said.length > 0 && named(field, said);
      if (wrong === field.classList.contains("wrong")) continue;
      field.classList.toggle("wrong", wrong);
      for (const input of field.querySelectorAll("input, textarea"))
        wrong ? input.setAttribute("aria-invalid", "true") : input.removeAttribute("aria-invalid");
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
