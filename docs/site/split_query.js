// The terms of a query, as search_terms.py finds them in a page.
var splitQuery = (query) => {
  const isChinese = /[\u3400-\u9fff]+/gu;
  const terms = query
    .replace(isChinese, " ")
    .split(/[^\p{Letter}\p{Number}_]+/gu)
    .filter((term) => term);
  for (const [run] of query.matchAll(isChinese)) {
    if (run.length === 1) terms.push(run);
    for (let k = 0; k + 1 < run.length; k++) terms.push(run.slice(k, k + 2));
  }
  return terms;
};
