-- The second part of the scripts that write. It ends the script on a conflict: the
-- sender's record is out of date.
--
-- ARGV     3 field to compare: v or g, 4 its expected value
--          5 time from which the sender's decision is out of date
--          6 lifetime of the key

local v, life = version(), tonumber(ARGV[6])
local is = v
if ARGV[3] == 'g' and string.match(v, '^%d+$') then is = short(old[2]) end
if duplicate() or is ~= ARGV[4] or now >= tonumber(ARGV[5]) then
  return reply(duplicate() and '2' or '0', v, old[2], old[3], old[4], old[5], record())
end
if problem then redis.call('DEL', key) end -- another type, which the sender replaces

-- Versions follow the time, so that they are unique even after the key was lost.
local last = whole(v)
v = int(math.max(last < 2 ^ 52 and last + 1 or 0, time[1] * 1000000 + time[2]))

-- write sets the fields and the sequence number. If there are more than 512 sources, it
-- deletes the half that reported longest ago.
local function write(...)
  if number == '' then return redis.call('HSET', key, ...) end
  redis.call('HSET', key, source, number .. ' ' .. int(now), ...)
  local others = 6
  for i = 1, #pieces do others = others + (old[7 + i] and 1 or 0) end
  if old[7] or redis.call('HLEN', key) <= others + 512 then return end
  local all, sources = redis.call('HGETALL', key), {}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 's:' then
      table.insert(sources, { all[i], whole(string.sub(all[i + 1], 22, 41)) })
    end
  end
  table.sort(sources, function(a, b) return a[2] < b[2] end)
  for i = 1, math.floor(#sources / 2) do
    redis.call('HDEL', key, sources[i][1])
  end
end
