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
