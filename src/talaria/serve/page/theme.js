// Before the first paint: the colours that were chosen last time; none chosen follows the system.
try {
  const theme = localStorage.getItem("talaria.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing has nothing to give back.
}
